// Uses the tutorial's page as a person would, and prints what there was to see, as JSON.
// Arguments: the page's address, the path of Chromium.

import { chromium } from "playwright-core";

const [address, executablePath] = process.argv.slice(2);
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update"];
const browser = await chromium.launch({ executablePath, args: quiet });
try {
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));

  const text = page.locator("#text");
  const ending = async () => {
    await page.locator("#start:enabled").waitFor();
    return text.innerText();
  };

  await page.goto(address);
  const connected = await ending();

  await page.click("#start");
  await page.waitForFunction(() => document.getElementById("bar").value === 2);
  await page.click("#cancel");
  const cancelled = await ending();

  await page.evaluate(() => {
    const bar = document.getElementById("bar");
    window.shown = [];
    new MutationObserver(() => shown.push([bar.value, bar.max])).observe(bar, { attributeFilter: ["value"] });
  });
  await page.click("#start");
  await text.getByText("PROGRESS").waitFor();
  const done = await ending();
  const progress = await page.evaluate(() => shown);
  console.log(JSON.stringify({ problems, connected, cancelled, progress, done }));
} finally {
  await browser.close();
}
