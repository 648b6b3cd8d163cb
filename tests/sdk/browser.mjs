// Opens a page, uses it, and prints what it shows. Arguments: folder of node_modules, path of the browser, URL, profile.
import { createRequire } from "node:module";

const [folder, executablePath, url, profile] = process.argv.slice(2);
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
args.push("--disable-component-update", "--disable-sync", "--no-sandbox");
const browser = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args });
const page = await browser.newPage();
const lines = [];
page.on("console", (message) => lines.push(message.text()));
page.on("pageerror", (error) => lines.push(String(error)));
try {
  await page.goto(url);
  await page.getByText("1 kettle RESERVED").waitFor({ timeout: 15000 });
  await page.click("#add");
  await page.getByText("1 kettle RESERVED, 2 espresso-beans RESERVED").waitFor({ timeout: 15000 });
  await page.click("#wrong");
  await page.getByText("INVALID").waitFor({ timeout: 15000 });
  console.log(await page.locator("#cart").textContent());
  console.log(await page.locator("#error").textContent());
} catch (error) {
  console.log(String(error), ...lines);
}
await browser.close();
