// The page: lists the tasks that the bridge exposes, calls them, and shows what becomes of each call.
// It talks to the node that served it and to nothing else.

import { asImage, asText } from "./values.js";

const REALM = "realm1";

// Arguments to start from. Tasks that are not here start from empty ones.
const EXAMPLES = {
  "my_app.tasks.add": [2, 3],
  "my_app.tasks.countdown": [30],
  "my_app.tasks.fail": ["on purpose"],
};

// How a call ends that was cancelled here.
const CANCELLED = new Set(["celery.error.revoked", "wamp.error.canceled"]);

const find = (selector, within = document) => within.querySelector(selector);
const copyOf = (id) => find(`template#${id}`).content.firstElementChild.cloneNode(true);

let session = null; // while connected
const running = new Set(); // calls without an outcome

function showConnection(state, text) {
  const status = find("#connection");
  status.dataset.state = state;
  status.textContent = text;
  for (const button of document.querySelectorAll(".task button")) button.disabled = state !== "open";
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const connection = new autobahn.Connection({
    url: `${scheme}//${location.host}/ws`,
    realm: REALM,
    max_retries: -1,
    initial_retry_delay: 0.5,
    max_retry_delay: 5,
  });
  connection.onopen = async (opened) => {
    session = opened;
    showConnection("open", "Connected");
    await listTasks();
  };
  connection.onclose = (reason) => {
    session = null;
    for (const call of running) call.fail("Connection lost", "Whether the task goes on is for the bridge to decide.");
    showConnection("lost", reason === "unreachable" ? "The router does not answer" : "Connection lost, trying again");
    return false; // Autobahn goes on trying.
  };
  connection.open();
}

async function listTasks() {
  let tasks;
  const asked = session;
  try {
    tasks = await asked.call("celery_api.tasks");
  } catch (error) {
    if (session !== asked) return; // The next connection asks again.
    const waiting = error.error === "wamp.error.no_such_procedure";
    showConnection("open", waiting ? "Connected, waiting for the bridge" : `The bridge does not list its tasks: ${error.error}`);
    setTimeout(() => session === asked && listTasks(), 1000);
    return;
  }
  showConnection("open", "Connected");
  showTasks(tasks);
}

function showTasks(tasks) {
  const shown = new Set([...document.querySelectorAll(".task")].map((card) => card.dataset.name));
  const names = tasks.map((task) => task.name);
  // What is there already keeps what was typed into it.
  if (names.length === shown.size && names.every((name) => shown.has(name))) return;
  find("#tasks").replaceChildren(...tasks.map(taskCard));
}

function taskCard(task) {
  const card = copyOf("task");
  card.dataset.name = task.name;
  find("h3", card).textContent = task.name;
  find(".signature code", card).textContent = task.signature ?? "";
  find(".doc", card).textContent = task.doc ?? "";
  card.elements.args.value = JSON.stringify(EXAMPLES[task.name] ?? []);
  if (!task.uri) {
    find(".problem", card).textContent = `It cannot be called by name: ${task.reason}.`;
    find("button", card).remove();
  }
  card.addEventListener("submit", (event) => {
    event.preventDefault();
    const args = parsed(card.elements.args, Array.isArray);
    const kwargs = parsed(card.elements.kwargs, (value) => value !== null && typeof value === "object" && !Array.isArray(value));
    find(".problem", card).textContent =
      args === undefined ? "Arguments take a JSON list, such as [2, 3]." :
      kwargs === undefined ? 'Keywords take a JSON object, such as {"delay": 0.5}.' : "";
    if (args !== undefined && kwargs !== undefined && session) call(task, args, kwargs);
  });
  return card;
}

function parsed(input, isRight) {
  let value;
  try {
    value = JSON.parse(input.value);
  } catch {
    // Shown as wrong below, like JSON of the wrong type.
  }
  const right = value !== undefined && isRight(value);
  input.setAttribute("aria-invalid", String(!right));
  return right ? value : undefined;
}

function call(task, args, kwargs) {
  const card = new CallCard(task, args, kwargs);
  const pending = session.call(task.uri, args, kwargs, { receive_progress: true });
  card.onCancel(() => pending.cancel({ mode: "kill" }));
  pending.then(
    (result) => card.succeed(result),
    (error) => card.fail(error.error ?? "Error", error.args?.join("\n") ?? String(error)),
    (progress) => card.update(...progress.args),
  );
}

class CallCard {
  #card = copyOf("call");
  #began = performance.now();
  #cancelling = false;

  constructor(task, args, kwargs) {
    const given = [...args.map((arg) => JSON.stringify(arg)), ...Object.entries(kwargs).map(([key, arg]) => `${key}=${JSON.stringify(arg)}`)];
    find(".what code", this.#card).textContent = `${task.name}(${given.join(", ")})`;
    find("#no-calls").hidden = true;
    find("#calls").prepend(this.#card);
    this.#card.scrollIntoView({ block: "nearest" });
    running.add(this);
  }

  onCancel(cancel) {
    const button = find(".cancel", this.#card);
    button.addEventListener("click", () => {
      button.disabled = true;
      this.#cancelling = true;
      this.#say("Cancelling");
      cancel();
    });
  }

  update(state, meta) {
    const { current, total } = meta ?? {};
    if (!(total > 0)) return this.#say(state);
    const bar = find("progress", this.#card);
    bar.max = total;
    bar.value = current;
    this.#say(`${state}, ${current} of ${total}`);
  }

  succeed(result) {
    const seconds = ((performance.now() - this.#began) / 1000).toFixed(2);
    this.#end("done", `Succeeded in ${seconds} s`, asImage(result) ?? textElement("pre", asText(result)));
  }

  fail(uri, message) {
    const [state, text] = this.#cancelling && CANCELLED.has(uri) ? ["cancelled", "Cancelled"] : ["failed", "Failed"];
    this.#end(state, text, Object.assign(textElement("p", uri), { className: "uri" }), textElement("pre", message));
  }

  #say(text) {
    find(".state", this.#card).textContent = text;
  }

  #end(state, text, ...outcome) {
    if (!running.delete(this)) return;
    this.#card.dataset.state = state;
    this.#say(text);
    find(".outcome", this.#card).replaceChildren(...outcome);
  }
}

function textElement(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

if (window.autobahn) {
  connect();
} else {
  showConnection("lost", "The page lacks its WAMP library: make wheel, or make demo, installs it");
}
