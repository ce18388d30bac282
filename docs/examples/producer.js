const { randomUUID } = require("crypto");
const Redis = require("ioredis");

const [broker, results, id, project, net, gib] = process.argv.slice(2);
const queue = "requests";
const want = { version: 1, context: { project_id: project }, size: +gib, share_network_id: net };
const embed = { callbacks: null, errbacks: null, chain: null, chord: null };
const message = {
  body: Buffer.from(JSON.stringify([[want], {}, embed])).toString("base64"),
  "content-type": "application/json",
  "content-encoding": "utf-8",
  headers: { lang: "js", task: "sharewright.request.create_share", id },
  properties: {
    body_encoding: "base64",
    delivery_tag: randomUUID(),
    delivery_info: { exchange: "", routing_key: queue },
    correlation_id: id,
    priority: 0,
  },
};

async function main() {
  const requests = new Redis(broker);
  await requests.lpush(queue, JSON.stringify(message));
  requests.disconnect();
  const answers = new Redis(results);
  let answer = { status: "PENDING" };
  for (let tries = 0; tries < 600 && !["SUCCESS", "FAILURE"].includes(answer.status); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    answer = JSON.parse(await answers.get(`celery-task-meta-${id}`)) || answer;
  }
  answers.disconnect();
  if (answer.status === "SUCCESS") return console.log(answer.result.export_locations[0].path);
  process.exitCode = 1;
  if (answer.status !== "FAILURE") return console.error(`no answer: ${answer.status}`);
  const [code, text, object, field] = answer.result.exc_message;
  console.error(`code: ${code}\nmessage: ${text}\nobject: ${object}\nfield: ${field}`);
}

main();
