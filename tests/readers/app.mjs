// The same as app.py around examples/read-token.mjs: node app.mjs read-token.mjs ACCOUNT
import { createInterface } from "node:readline";

const [program, account] = process.argv.slice(2);
const now = Date.now;
const sinceStart = performance.now.bind(performance);
let ahead = 0; // milliseconds
let idle = 0;
Date.now = () => now() + ahead;
performance.now = () => sinceStart() + ahead - idle;

const { AppJWT } = await import(program);
const jwt = new AppJWT(account);

async function run(command, argument) {
  if (command === "later") ahead += Number(argument) * 1000;
  if (command === "refused") return jwt.refused(argument);
  if (command === "ask") {
    const results = await Promise.all([1, 2, 3].map(() => jwt.authorization())); // several requests at once
    return new Set(results).size === 1 ? results[0] : results;
  }
  return null;
}

let ended = sinceStart();
for await (const line of createInterface({ input: process.stdin })) {
  idle += sinceStart() - ended;
  const [command, argument] = line.split(" ");
  const answer = await run(command, argument).then((result) => ({ result }), (error) => ({ error: error.message }));
  console.log(JSON.stringify(answer));
  ended = sinceStart();
}
