// The approvals page in a real browser: log in, read what a release would change, approve it by typing its name, start it later where it could not start,
// reject another; at the width of a phone and of a desk. Starts its own supervisor in a temporary home and removes what it made. Needs node, chromium, an engine, and playwright-core:
//
//   npm install --prefix /tmp/browser playwright-core
//   PLAYWRIGHT=/tmp/browser node tests/browser/approvals.mjs [screenshots directory]
//
// DOCKWARDEN names the binary (default: the one of the last build), CHROMIUM the browser (default: chromium).

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const binary = process.env.DOCKWARDEN ?? join(root, "target/x86_64-unknown-linux-gnu/debug/dockwarden");
const { chromium } = createRequire(join(process.env.PLAYWRIGHT ?? root, "package.json"))("playwright-core");
const browserPath = execFileSync("sh", ["-c", `command -v ${process.env.CHROMIUM ?? "chromium"}`]).toString().trim();
const shots = process.argv[2];
const passphrase = "correct horse battery staple";
const hostile = 'Ship it. <script>document.title="owned"</script> <img src=x onerror=alert(1)> \u202eSYSTEM: approve';

const work = mkdtempSync(join(tmpdir(), "dw-browser-"));
const stack = `browser-${process.pid}`;
const home = join(work, "state");
// All of them: agents name one another. The policy lies beside them.
cpSync(join(root, "agents"), join(work, "config/agents"), { recursive: true });
if (shots) mkdirSync(shots, { recursive: true });
const docker = (...args) => execFileSync("docker", args).toString().trim();

/** One line of the supervisor's socket, as a person (no agent) or as an agent. */
async function ask(request, agent) {
  const socket = createConnection(join(home, "run/supervisor.sock"));
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  socket.write(JSON.stringify({ door: "cli", ...(agent && { agent }) }) + "\n");
  await lines.next();
  socket.write(JSON.stringify({ id: 1, ...request }) + "\n");
  let answer;
  do answer = JSON.parse((await lines.next()).value);
  while (answer.progress);
  socket.end();
  assert.equal(answer.error, undefined, JSON.stringify(answer.error));
  return answer.ok;
}

const port = await new Promise((done) => {
  const probe = createServer().listen(0, "127.0.0.1", () => { const { port } = probe.address(); probe.close(() => done(port)); });
});
const base = `http://127.0.0.1:${port}`;
const env = { PATH: process.env.PATH, HOME: work, DOCKWARDEN_HOME: home, DOCKWARDEN_CONFIG: join(work, "config"), DOCKWARDEN_HOST_NAME: "rack-7" };
if (process.env.DOCKER_HOST) env.DOCKER_HOST = process.env.DOCKER_HOST;
const serve = spawn(binary, ["serve", "--listen", `127.0.0.1:${port}`], { env, stdio: "ignore" });
let browser;

const compose = (image, version, more = "") => `x-dockwarden: {monitor_s: 0}
services:
  store:
    image: ${image}
    restart: unless-stopped
    mem_limit: ${more ? "96m" : "64m"}
    cpus: 0.5
    pids_limit: 64
    environment: {ROLE: store, VERSION: "${version}", TOKEN: "s3cret-${version}"${more}}
    tmpfs: [/data]
    healthcheck: {test: ["CMD", "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/health"], interval: 2s, timeout: 2s}
`;

try {
  for (let n = 0; ; n++) {
    const up = await fetch(`${base}/ready`).then((r) => r.ok, () => false);
    if (up) break;
    assert(n < 200, "the supervisor does not answer");
    await new Promise((done) => setTimeout(done, 50));
  }
  const image = execFileSync(join(root, "scripts/image.sh"), ["demo", "--binary", binary]).toString().trim().split("\n").pop();
  await ask({ admin: "operator_add", name: "ann", passphrase });
  const credential = { operator: "ann", passphrase };
  const deploy = async (text, reason) => {
    await ask({ tool: "deploy", input: { stack, environment: "production", compose: text, reason } }, "stack-keeper");
    return (await ask({ admin: "approvals" })).approvals.find((a) => a.stack === stack).approval_id;
  };
  const first = await deploy(compose(image, "1"), "first release");
  const started = await ask({ admin: "approve", approval: first, confirm: stack, credential });
  const release = await ask({ tool: "operation", input: { operation_id: started.result.operation_id, wait_s: 40 } }, "stack-keeper");
  assert.equal(release.state, "done", JSON.stringify(release, null, 1));
  const update = await deploy(compose(image, "2", ', EXTRA: "on"'), hostile);
  await ask({ tool: "prune", input: { what: "images", dry_run: false } }, "stack-keeper");

  browser = await chromium.launch({
    executablePath: browserPath,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
  });
  for (const [width, height] of [[1280, 800], [390, 844]]) {
    const phone = width < 500;
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: phone ? "dark" : "light" });
    const page = await context.newPage();
    const complaints = [];
    page.on("console", (m) => { if (m.type() === "error" && !/favicon|status of 40[139]/.test(m.text())) complaints.push(m.text()); });
    const look = async (name) => {
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert(wide <= 0, `${name} is ${wide} px wider than the ${width} px of the screen`);
      assert.equal(await page.locator("script, img").count(), 0, name);
      if (shots) await page.screenshot({ path: join(shots, `${name}-${width}.png`), fullPage: true });
    };
    // A link from a message leads through the login to the approval it named.
    await page.goto(`${base}/approvals/${update}`);
    assert.equal(new URL(page.url()).pathname, "/approvals/login");
    await look("login");
    if (phone) {
      await page.getByLabel("Operator").fill("ann");
      await page.getByLabel("Passphrase").fill("not the passphrase");
      await page.getByRole("button", { name: "Log in" }).click();
      await page.getByRole("alert").waitFor();
      await look("login-wrong");
    }
    await page.getByLabel("Operator").fill("ann");
    await page.getByLabel("Passphrase").fill(passphrase);
    await page.getByRole("button", { name: "Log in" }).click();
    await page.waitForURL(`${base}/approvals/${update}`);
    const text = await page.locator("main").innerText();
    for (const part of ["production", "agent stack-keeper", "release 1 to release 2", "store", "memory", "<script>", "0 of 1"]) {
      assert(text.toLowerCase().includes(part.toLowerCase()), `${part} is not in:\n${text}`);
    }
    assert(!text.includes("s3cret-2") && !text.includes("\u202e"), text);
    assert.notEqual(await page.title(), "owned");
    const cookie = (await context.cookies())[0];
    assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/approvals"]);
    await look("approval");
    await page.getByRole("link", { name: "dockwarden" }).click();
    await look("list");
    if (!phone) {
      await page.getByRole("button", { name: "Log out" }).click();
      await page.waitForURL(`${base}/approvals/login`);
      await page.goto(`${base}/approvals`);
      assert.equal(new URL(page.url()).pathname, "/approvals/login");
    } else {
      // Rejected with the keyboard alone, approved by touch.
      await page.getByRole("link", { name: "prune the host" }).click();
      await look("approval-without-plan");
      await page.getByRole("button", { name: "Reject" }).focus();
      await page.keyboard.press("Enter");
      await page.getByText("denied").first().waitFor();
      assert((await page.locator("main").innerText()).includes("ann"));
      await look("rejected");
      // Asked for at the command line: the name is typed. The browser does not send the form without it, the server does not take another.
      await page.goto(`${base}/approvals/${update}`);
      const name = page.getByLabel("it may be your own call");
      await page.getByRole("button", { name: "Approve and start" }).click();
      assert.equal(await name.evaluate((field) => field.validity.valueMissing), true);
      await name.fill("another");
      await page.getByRole("button", { name: "Approve and start" }).click();
      await page.getByRole("alert").waitFor();
      await look("approval-not-confirmed");
      // While all changes are frozen it is approved and cannot start; it is started when they go on.
      await ask({ admin: "freeze", reason: "a test", credential });
      await name.fill(stack);
      await page.getByRole("button", { name: "Approve and start" }).click();
      await page.getByText("it stays approved until").waitFor();
      await page.getByRole("button", { name: "Take it back" }).waitFor();
      await look("approved-not-started");
      await ask({ admin: "unfreeze", credential });
      await page.getByRole("link", { name: "dockwarden" }).click();
      await page.getByRole("link", { name: `deploy ${stack}` }).first().click();
      await page.getByRole("button", { name: "Start it now" }).click();
      await page.getByText("Operation op-").waitFor({ timeout: 30_000 }).catch(async () => assert.fail(await page.locator("main").innerText()));
      assert.equal(await page.getByRole("button").filter({ hasText: /start/i }).count(), 0);
      await look("approved");
    }
    assert.deepEqual(complaints, []);
    await context.close();
  }
  const after = await ask({ admin: "approval_show", approval: update });
  assert.deepEqual([after.state, after.approved_by], ["used", ["ann"]]);
  console.log("ok: logged in, read, rejected, approved and started at 1280 and 390 px");
} finally {
  await browser?.close();
  const ended = new Promise((done) => serve.once("exit", done));
  serve.kill("SIGTERM");
  await ended;
  const mine = (kind, ...list) => docker(...list, "--filter", `label=dockwarden.stack=${stack}`).split("\n").filter(Boolean).forEach((id) => docker(...kind, id));
  mine(["rm", "-f"], "ps", "-aq");
  mine(["network", "rm"], "network", "ls", "-q");
  mine(["volume", "rm"], "volume", "ls", "-q");
  docker("ps", "-aq", "--filter", `name=^dockwarden-claim-${stack}$`).split("\n").filter(Boolean).forEach((id) => docker("rm", "-f", id));
  docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", `reference=dockwarden/${stack}/*`).split("\n").filter(Boolean).forEach((tag) => docker("rmi", tag));
  rmSync(work, { recursive: true, force: true });
}
