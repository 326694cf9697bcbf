// Uses the demo's page as a person would, and prints what there was to see, as JSON.
// Arguments: the page's address, the path of Chromium, a file for a screenshot.

import { chromium } from "playwright-core";

const [address, executablePath, screenshot] = process.argv.slice(2);
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update"];
const browser = await chromium.launch({ executablePath, args: quiet });
try {
  const page = await browser.newPage();
  const seen = { requests: [], problems: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.problems.push(message.text()));

  await page.goto(address);
  await page.waitForSelector(".task");
  seen.connection = await page.textContent("#connection");
  seen.tasks = await page.$$eval(".task h3", (titles) => titles.map((title) => title.textContent));

  const call = async (name, args) => {
    const task = page.locator(`.task[data-name="my_app.tasks.${name}"]`);
    await task.getByLabel("Arguments").fill(args);
    await task.getByRole("button").click();
    return page.locator(".call").first();
  };
  const outcome = async (card) => {
    await card.locator(".outcome > *").first().waitFor();
    return { state: await card.getAttribute("data-state"), text: await card.locator(".outcome").innerText() };
  };

  seen.add = await outcome(await call("add", "[20, 22]"));
  seen.fail = await outcome(await call("fail", '["on purpose"]'));

  const countdown = await call("countdown", "[10]");
  await countdown.evaluate((card) => {
    const bar = card.querySelector("progress");
    card.shown = [];
    new MutationObserver(() => card.shown.push(bar.value / bar.max)).observe(bar, { attributes: true });
  });
  seen.countdown = await outcome(countdown);
  seen.progress = await countdown.evaluate((card) => card.shown);

  const picture = await call("mandelbrot", "[-0.6, 0, 2.6, 120, 90]");
  await picture.locator("img").waitFor();
  seen.picture = await picture.locator("img").evaluate(async (image) => {
    await image.decode();
    return [image.naturalWidth, image.naturalHeight];
  });

  const cancelled = await call("countdown", "[600]");
  await cancelled.getByText("of 600").waitFor();
  await cancelled.getByRole("button", { name: "Cancel" }).click();
  seen.cancelled = await outcome(cancelled);

  await call("add", "not JSON");
  seen.mistake = await page.locator('.task[data-name="my_app.tasks.add"]').getByRole("alert").innerText();

  await page.screenshot({ path: screenshot, fullPage: true });
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}
