// Uses a bridge as any WAMP client in JavaScript would, and prints what came back, as JSON.
// Arguments: the router's address, the bridge's URI prefix, a file for a task to touch if it runs.

import autobahn from "autobahn";

const [url, prefix, touched] = process.argv.slice(2);

// autobahn tells of progressive results through the Deferred's notify(), which promises do not have.
const use_deferred = () => {
  const deferred = {};
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }));
  deferred.notify = ({ args }) => deferred.promise.onProgress?.(args);
  return deferred;
};
const uri = (name) => `${prefix}.taskapp.${name}`;
const api = (name) => `${prefix}_api.${name}`;
const refusal = (call) => call.then(
  (value) => { throw new Error(`not refused: ${JSON.stringify(value)}`); },
  ({ error, args, kwargs }) => ({ error, args, kwargs }),
);

const use = async (session) => {
  const seen = { events: [] };
  const ended = new Promise((resolve) => {
    const take = (_args, payload, { topic }) => {
      seen.events.push([topic, payload.state]);
      if (topic.endsWith(".succeeded")) resolve();
    };
    session.subscribe(uri("countdown"), take, { match: "prefix" });
  });

  seen.add = await session.call(uri("add"), [2, 3]);
  seen.keywords = await session.call(uri("echo"), [], { fun: 1, f: 2, options: 3, details: 4, keywords: 5 });

  const countdown = session.call(uri("countdown"), [3], { delay: 0.1 }, { receive_progress: true });
  seen.progress = [];
  countdown.onProgress = (args) => seen.progress.push(args);
  seen.countdown = await countdown;
  await ended;

  seen.fail = await refusal(session.call(uri("fail"), ["no luck"]));
  seen.arguments = await refusal(session.call(uri("add"), [1]));
  seen.unencodable = await refusal(session.call(uri("odd"), ["nan"]));

  const call = session.call(uri("touch"), [touched], { celery_options: { countdown: 1 } });
  seen.inFlight = (await session.call(api("status"))).in_flight;
  call.cancel({ mode: "kill" });
  seen.cancelled = await refusal(call);
  // Due later than the task that was cancelled.
  await session.call(uri("touch"), [`${touched}.later`], { celery_options: { countdown: 1.5 } });

  const id = await session.call(api("submit"), ["taskapp.add", [4, 5]]);
  seen.submitted = await session.call(api("result"), [id]);
  const topic = `${prefix}_task.${id.replaceAll("-", "")}`;
  seen.late = await new Promise((resolve) => {
    session.subscribe(topic, (_args, payload) => resolve(payload.state), { get_retained: true });
  });
  return seen;
};

const connection = new autobahn.Connection({ url, realm: "realm1", use_deferred, max_retries: 0 });
connection.onopen = (session) => {
  use(session).then((seen) => console.log(JSON.stringify(seen)), (error) => {
    console.error(error);
    process.exitCode = 1;
  }).finally(() => connection.close());
};
connection.onclose = (reason, { reason: why }) => {
  if (reason !== "closed") {
    console.error(reason, why);
    process.exitCode = 1;
  }
};
connection.open();
