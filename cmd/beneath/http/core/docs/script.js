"use strict";

/** Return an element with the given properties and children; text is never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Return the schema that `schema` refers to. */
function resolve(api, schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? api.components.schemas[name] : schema ?? {};
}

/** Return an example value for `schema`. */
function example(api, schema) {
  const found = resolve(api, schema);
  if (found.examples) return found.examples[0];
  if (found.default !== undefined) return found.default;
  if (found.enum) return found.enum[0];
  if (found.anyOf) return example(api, found.anyOf[0]);
  if (found.type === "array") return [example(api, found.items)];
  if (found.type === "object") {
    const fields = Object.entries(found.properties ?? {});
    return Object.fromEntries(fields.map(([name, field]) => [name, example(api, field)]));
  }
  const simple = { string: found.format === "date-time" ? "2026-01-01T00:00:00Z" : found.format ?? "text" };
  return simple[found.type] ?? (found.type === "boolean" ? false : found.type === "null" ? null : 1);
}

function parameterField(parameter) {
  const hint = parameter.description ?? parameter.schema?.format ?? parameter.schema?.type ?? "";
  const field = make("input", { placeholder: hint, required: parameter.required ?? false });
  field.dataset.name = parameter.name;
  field.dataset.place = parameter.in;
  return make("label", {}, `${parameter.name} (${parameter.in})`, field);
}

function responseRow(api, status, response) {
  const content = Object.values(response.content ?? {})[0];
  const sample = content?.schema && status < "300" ? JSON.stringify(example(api, content.schema), null, 2) : null;
  const description = make("td", {}, response.description, sample ? make("pre", { textContent: sample }) : null);
  return make("tr", {}, make("td", {}, make("code", { textContent: status })), description);
}

/** Send the request of the form, and show the response. */
async function send(form, method, path, output) {
  const headers = {};
  const query = new URLSearchParams();
  let target = path;
  for (const field of form.querySelectorAll("input[data-name]")) {
    const { name, place } = field.dataset;
    if (place === "path") target = target.replace(`{${name}}`, encodeURIComponent(field.value));
    else if (field.value && place === "query") query.set(name, field.value);
    else if (field.value) headers[name] = field.value;
  }
  const secret = document.getElementById("secret").value;
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const body = form.querySelector("textarea")?.value;
  if (body) headers["Content-Type"] = "application/json";
  const url = query.size ? `${target}?${query}` : target;
  try {
    const answer = await fetch(url, { method: method.toUpperCase(), headers, body });
    const text = await answer.text();
    const pretty = text && answer.headers.get("content-type")?.includes("json") ? JSON.stringify(JSON.parse(text), null, 2) : text;
    const shown = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    output.textContent = `${answer.status} ${answer.statusText}\n${shown}\n\n${pretty}`;
  } catch (error) {
    output.textContent = `No response: ${error.message}`;
  }
}

function operationView(api, path, method, operation) {
  const content = operation.requestBody?.content?.["application/json"];
  const body = content && make("textarea", { rows: 6, value: JSON.stringify(example(api, content.schema), null, 2) });
  const output = make("pre", { textContent: "Not sent yet." });
  const form = make(
    "form",
    {},
    ...(operation.parameters ?? []).map(parameterField),
    body ? make("label", {}, "body", body) : null,
    make("button", { textContent: "Send" }),
    output,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, method, path, output);
  });
  const responses = Object.entries(operation.responses).map(([status, response]) => responseRow(api, status, response));
  const inside = make(
    "div",
    { className: "inside" },
    make("p", { textContent: operation.description ?? "" }),
    make("h3", { textContent: "Try it" }),
    form,
    make("h3", { textContent: "Responses" }),
    make("table", {}, ...responses),
  );
  const head = make("summary", {}, make("code", { className: "method", textContent: method }), make("code", { textContent: path }), make("span", { textContent: operation.summary ?? "" }));
  return make("details", {}, head, inside);
}

async function draw() {
  const api = await (await fetch("openapi.json")).json();
  document.title = document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  document.getElementById("description").textContent = api.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, [make("h2", { textContent: tag })]);
      groups.get(tag).push(operationView(api, path, method, operation));
    }
  }
  document.getElementById("operations").append(...[...groups.values()].flat());
}

draw();
