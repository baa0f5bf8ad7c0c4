// The engine lies in the folder "ort" beside this file; README.md says how it gets there. A page on the network
// could name a CDN here instead, such as https://cdn.jsdelivr.net/npm/onnxruntime-web@VERSION/dist/.
import * as ort from "./ort/ort.wasm.min.mjs";
import { describe, dimsOf, randomInputs } from "./model.js";

const RUNS = 20;
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need a page that is isolated by its server's headers

function show(what, text) {
  const row = document.getElementById("rows").insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = what;
  row.append(head);
  row.insertCell().textContent = text;
}

async function main() {
  const query = new URLSearchParams(location.search);
  const file = query.get("model") ?? "model.onnx";
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());

  const began = performance.now();
  const session = await ort.InferenceSession.create(bytes);
  const loaded = performance.now() - began;

  const inputs = randomInputs(ort, session.inputMetadata, dimsOf(query.getAll("dims")));
  let outputs = await session.run(inputs); // the first run lays out memory
  const times = [];
  for (let run = 0; run < RUNS; run++) {
    const start = performance.now();
    outputs = await session.run(inputs);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);

  show("model", file);
  show("bytes", bytes.length.toLocaleString("en"));
  show("time to load", `${loaded.toFixed(1)} ms`);
  show("time to run", `${times[RUNS / 2].toFixed(2)} ms (median of ${RUNS})`);
  for (const [name, tensor] of Object.entries(inputs)) show(`input ${name}`, describe(tensor));
  for (const [name, tensor] of Object.entries(outputs)) show(`output ${name}`, describe(tensor));
  document.querySelector("table").hidden = false;
}

const state = document.getElementById("state");
main().then(
  () => (state.textContent = "Done."),
  (error) => (state.textContent = `That didn't work: ${error.message ?? error}`),
);
