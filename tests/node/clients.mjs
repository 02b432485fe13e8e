// What other people's clients make of dockwarden: every SDK, over stdio and HTTP, in every era it speaks, connects, lists, calls a tool that
// reads, deploys with progress, gives a call up while the operation goes on, comes back and finds it. One line a row; any difference ends it.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import { Client as Client1 } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport as Stdio1 } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport as Http1 } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { Client as Client2, StreamableHTTPClientTransport as Http2 } from '@modelcontextprotocol/client';
import { StdioClientTransport as Stdio2 } from '@modelcontextprotocol/client/stdio';

const names = ['binary', 'home', 'config', 'url', 'token', 'stack', 'image'];
const { values: a } = parseArgs({ options: Object.fromEntries(names.map((n) => [n, { type: 'string' }])) });
const require = createRequire(import.meta.url);
const version = (name) => require(`./node_modules/${name}/package.json`).version;

const env = { ...process.env, DOCKWARDEN_HOME: a.home, DOCKWARDEN_CONFIG: a.config };
const command = { command: a.binary, args: ['mcp', '--agent', 'stack-keeper', '--toolsets', 'all'], env };
const headers = { Authorization: `Bearer ${a.token}`, 'X-MCP-Toolsets': 'all' };
const url = new URL(a.url);
const me = { name: 'clients.mjs', version: '1' };

const one = {
  name: `sdk ${version('@modelcontextprotocol/sdk')}`,
  client: () => new Client1(me),
  stdio: () => new Stdio1(command),
  http: () => new Http1(url, { requestInit: { headers } }),
  call: (client, params, options) => client.callTool(params, undefined, options),
};
const two = (mode) => ({
  name: `client ${version('@modelcontextprotocol/client')}`,
  client: () => new Client2(me, { versionNegotiation: { mode } }),
  stdio: () => new Stdio2(command),
  http: () => new Http2(url, { requestInit: { headers } }),
  call: (client, params, options) => client.callTool(params, options),
  era: mode === 'legacy' ? undefined : mode.pin,
});

const fail = (what, value) => {
  console.error(`${what}: ${JSON.stringify(value)?.slice(0, 2000)}`);
  process.exit(1);
};
const expect = (what, value, wanted) => (value === wanted ? value : fail(`${what}, wanted ${JSON.stringify(wanted)}`, value));

let release = 0;
// A stack of one service that is proven by a health check; a new version each time.
const deploy = (extra = {}) => ({
  name: 'deploy',
  arguments: {
    stack: a.stack,
    compose: `
x-dockwarden: {monitor_s: 1}
services:
  web:
    image: ${a.image}
    mem_limit: 64m
    environment: {ROLE: api, VERSION: "\${VERSION}"}
    healthcheck: {test: ["CMD", "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/health"], interval: 1s, timeout: 2s, retries: 5}
    x-dockwarden: {start_timeout_s: 20}
`,
    variables: { VERSION: String(++release) },
    ...extra,
  },
});

async function row(sdk, door) {
  const connect = async () => {
    const client = sdk.client();
    await client.connect(sdk[door]());
    return client;
  };
  let client = await connect();
  const call = async (params, options) => {
    const result = await sdk.call(client, params, options);
    if (result.isError) fail(params.name, result);
    return result.structuredContent;
  };
  // Every page of every list.
  expect('server', client.getServerVersion()?.name, 'dockwarden');
  const tools = (await client.listTools()).tools.map((t) => t.name);
  expect('tools are listed', tools.includes('deploy') && tools.includes('prune'), true);
  expect('prompts are listed', (await client.listPrompts()).prompts.some((p) => p.name === 'deploy'), true);
  expect('resources are listed', (await client.listResources()).resources.some((r) => r.uri === 'dockwarden://stacks'), true);
  const read = await client.readResource({ uri: 'dockwarden://stacks' });
  expect('a resource is read', Array.isArray(JSON.parse(read.contents[0].text).stacks), true);
  const typed = { ref: { type: 'ref/prompt', name: 'deploy' }, argument: { name: 'stack', value: a.stack.slice(0, 5) } };
  expect('status', Array.isArray((await call({ name: 'status', arguments: {} })).stacks), true);

  // An error reaches the model as it was said: a client that checks it against the schema of a success would show another one.
  const missed = await sdk.call(client, { name: 'health', arguments: { stack: `${a.stack}-nowhere` } });
  expect('an error is read', missed.isError && missed.structuredContent?.error?.code, 'not_found');

  let seen = 0;
  let last = -1;
  let grows = true;
  const onprogress = (p) => {
    seen += 1;
    grows &&= p.progress > last && p.total === 100;
    last = p.progress;
  };
  const deployed = await call(deploy(), { onprogress, timeout: 58_000 });
  expect('deployed', deployed.state, 'monitoring');
  expect('progress came', seen > 1 && grows, true);
  expect('a stack is completed', (await client.complete(typed)).completion.values.includes(a.stack), true);
  await call({ name: 'operation', arguments: { operation_id: deployed.operation_id, wait_s: 30 } });

  // Given up while it runs: the operation goes on, and another connection finds it by the key.
  const key = `${sdk.name} ${door} ${sdk.era ?? 'legacy'}`;
  const again = deploy({ idempotency_key: key });
  const stop = new AbortController();
  const given = sdk.call(client, again, { onprogress: () => stop.abort(), signal: stop.signal, timeout: 58_000 });
  expect('the call was given up', await given.then(() => 'answered', () => 'given up'), 'given up');
  await client.close();
  client = await connect();
  const found = await call(again, { timeout: 58_000 });
  expect('the operation went on', ['monitoring', 'done'].includes(found.state), true);
  const ended = await call({ name: 'operation', arguments: { operation_id: found.operation_id, wait_s: 30 } });
  expect('the operation is done', ended.state, 'done');
  const history = await call({ name: 'history', arguments: { stack: a.stack } });
  expect('no release was made twice', history.current, release);
  await client.close();
  console.log(`ok ${sdk.name} | ${door} | ${sdk.era ?? 'initialize'}`);
}

// The Inspector checks every schema for what some client cannot take.
function inspector(door, more) {
  const cli = ['node_modules/.bin/mcp-inspector', '--cli', '--method', 'tools/list', '--strict'];
  const run = spawnSync(process.execPath, [...cli, ...more], { env, encoding: 'utf8', cwd: import.meta.dirname, timeout: 60_000 });
  if (run.status !== 0) fail(`inspector over ${door}: exit ${run.status}`, run.stderr);
  const listed = JSON.parse(run.stdout).tools.length;
  if (listed < 20) fail('the inspector lists too few tools', listed);
  if (/warning/i.test(run.stderr) && !/0 warnings/.test(run.stderr)) fail(`inspector over ${door} warns`, run.stderr);
  console.log(`ok inspector ${version('@modelcontextprotocol/inspector')} --strict | ${door} | ${listed} tools`);
}

// It hands its own environment to no server it starts: without these the bridge would start a supervisor in the user's own home.
const home = [`DOCKWARDEN_HOME=${a.home}`, `DOCKWARDEN_CONFIG=${a.config}`];
inspector('stdio', ['--', 'env', ...home, command.command, ...command.args]);
inspector('http', ['--transport', 'http', '--server-url', a.url, ...Object.entries(headers).flatMap(([k, v]) => ['--header', `${k}: ${v}`])]);
for (const door of ['stdio', 'http']) {
  for (const sdk of [one, two('legacy'), two({ pin: '2026-07-28' })]) {
    await row(sdk, door);
  }
}
console.log('clients agree');
process.exit(0);
