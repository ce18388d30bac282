// A producer with celery-node: the arguments and the output are those of plain.py, without options.
const celery = require("celery-node");

async function outcome(result) {
  try {
    return { result: await result.get(60000) };
  } catch (failure) {
    const stored = (await result.result()) || {};
    return { type: stored.exc_type || failure.message, args: stored.exc_message || [] };
  }
}

async function main() {
  const [broker, results] = process.argv.slice(2);
  const client = celery.createClient(broker, results, "requests");
  const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
  const sent = asked.map(([task, payload]) => client.createTask(task).applyAsync([payload]));
  console.log(JSON.stringify(await Promise.all(sent.map(outcome))));
  await client.disconnect();
}

main();
