// Uses a bridge through wampy, and prints what came back, as JSON.
// Arguments: the router's address, the bridge's URI prefix, a file for a task to touch if it runs.

import { Wampy } from "wampy";

const [url, prefix, touched] = process.argv.slice(2);
const uri = (name) => `${prefix}.taskapp.${name}`;
const api = (name) => `${prefix}_api.${name}`;
const refusal = (call) => call.then(
  (value) => { throw new Error(`not refused: ${JSON.stringify(value)}`); },
  ({ errorUri, argsList, argsDict }) => ({ error: errorUri, args: argsList, kwargs: argsDict }),
);
// Node.js has a WebSocket of its own. Of what wampy gives to the one from npm, it takes the first two.
class Socket extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols);
  }
}
const session = new Wampy(url, { realm: "realm1", ws: Socket, uriValidation: "loose", maxRetries: 0 });

await session.connect();
const value = async (...call) => (await session.call(...call)).argsList[0];
const seen = { events: [], progress: [] };
let countdownEnded;
const ended = new Promise((resolve) => { countdownEnded = resolve; });
await session.subscribe(uri("countdown"), ({ details, argsDict }) => {
  seen.events.push([details.topic, argsDict.state]);
  if (details.topic.endsWith(".succeeded")) countdownEnded();
}, { match: "prefix" });

seen.add = await value(uri("add"), [2, 3]);
seen.countdown = await value(uri("countdown"), { argsList: [3], argsDict: { delay: 0.1 } }, {
  progress_callback: ({ argsList }) => seen.progress.push(argsList),
});
await ended;
seen.fail = await refusal(session.call(uri("fail"), ["no luck"]));

const call = session.call(uri("touch"), { argsList: [touched], argsDict: { celery_options: { countdown: 1 } } });
const { reqId } = session.getOpStatus();
seen.inFlight = (await value(api("status"))).in_flight;
session.cancel(reqId, { mode: "kill" });
seen.cancelled = await refusal(call);
// Due later than the task that was cancelled.
await session.call(uri("touch"), {
  argsList: [`${touched}.later`], argsDict: { celery_options: { countdown: 1.5 } },
});

const id = await value(api("submit"), ["taskapp.add", [4, 5]]);
seen.submitted = await value(api("result"), [id]);
seen.late = await new Promise((resolve) => {
  session.subscribe(`${prefix}_task.${id.replaceAll("-", "")}`, ({ argsDict }) => resolve(argsDict.state), {
    get_retained: true,
  });
});
console.log(JSON.stringify(seen));
await session.disconnect();
