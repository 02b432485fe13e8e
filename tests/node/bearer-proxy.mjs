// Passes every request on with a bearer token added, and changes nothing else: the conformance suite cannot send one, and the server
// serves nobody without. Prints the port it listens on.  node bearer-proxy.mjs HOST:PORT TOKEN
import http from 'node:http';

const [upstream, token] = process.argv.slice(2);
const [hostname, port] = upstream.split(':');

const server = http.createServer((request, response) => {
  const headers = [...request.rawHeaders, 'Authorization', `Bearer ${token}`];
  const onward = http.request({ hostname, port, method: request.method, path: request.url, headers, setHost: false }, (answer) => {
    response.writeHead(answer.statusCode, answer.rawHeaders);
    answer.pipe(response);
  });
  onward.on('error', () => response.destroy());
  // A client that goes away must be seen to go away by the server too.
  response.on('close', () => onward.destroy());
  request.pipe(onward);
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
