"use strict";
// Draws openapi.json: one section a route, with its description, request forms, answer and errors.

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const code = (value) => element("pre", { textContent: typeof value === "string" ? value : JSON.stringify(value, null, 2) });

function example(schema, schemas) {
  if (!schema) return null;
  if (schema.$ref) return example(schemas[schema.$ref.split("/").pop()], schemas);
  if (schema.example !== undefined) return schema.example;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  const choice = schema.anyOf || schema.oneOf;
  if (choice) return example(choice[0], schemas);
  if (schema.type === "array") return [example(schema.items, schemas)];
  if (schema.type === "object" && schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties).map(([key, part]) => [key, example(part, schemas)]));
  }
  return { string: "…", integer: 0, number: 0.5, boolean: true, object: {} }[schema.type] ?? null;
}

// Indented lines of a description are commands, `…` is code.
function description(text) {
  const commands = text.split("\n").filter((line) => line.startsWith("    ")).map((line) => line.trim());
  const prose = text.split("\n").filter((line) => !line.startsWith("    ")).join(" ").trim();
  const parts = prose.split("`").map((part, place) => (place % 2 ? element("code", { textContent: part }) : part));
  const made = [element("p", {}, ...parts)];
  if (commands.length) made.push(code(commands.join("\n")));
  return made;
}

function route(path, verb, operation, schemas) {
  const made = element("section", { className: "route" });
  made.append(element("h2", {}, element("span", { className: "verb", textContent: `${verb.toUpperCase()} ` }), path));
  made.append(element("p", { textContent: operation.summary || "" }));
  if (operation.description) made.append(...description(operation.description));
  const forms = operation.requestBody ? operation.requestBody.content : {};
  if (Object.keys(forms).length) {
    made.append(element("p", { className: "quiet", textContent: `Takes ${Object.keys(forms).join(", ")}` }));
  }
  for (const media of Object.values(forms)) if (media.example) made.append(code(media.example));
  const good = operation.responses["200"];
  const answer = good && good.content && good.content["application/json"];
  if (answer) made.append(element("p", { className: "quiet", textContent: "Answers" }), code(example(answer.schema, schemas)));
  const bad = Object.entries(operation.responses).filter(([status]) => status !== "200");
  const rows = bad.map(([status, told]) =>
    element("tr", {}, element("td", { textContent: status }), element("td", { textContent: told.description })));
  if (rows.length) made.append(element("table", {}, element("tbody", {}, ...rows)));
  return made;
}

async function draw() {
  const api = await (await fetch("openapi.json")).json();
  const schemas = api.components.schemas;
  const sections = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, operation]) => route(path, verb, operation, schemas)));
  document.getElementById("routes").replaceChildren(...sections);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

draw().catch((error) => document.getElementById("routes").append(`openapi.json cannot be read: ${error.message}`));
