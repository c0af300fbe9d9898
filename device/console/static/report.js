// The report's buttons.

document.getElementById("print").onclick = () => print();
const make = async (event) => {
  // Fetched first, so that a refusal is one line here and not another page.
  event.preventDefault();
  const link = event.currentTarget, name = link.textContent;
  link.textContent = `${name} is being made…`;
  const answer = await fetch(link.href).catch(() => null);
  link.textContent = name;
  if (!answer?.ok) { link.after(` ${answer ? await answer.text() : "the box does not answer"}`); return; }
  const address = URL.createObjectURL(await answer.blob());
  Object.assign(document.createElement("a"), { href: address, download: link.dataset.name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
};
for (const link of document.querySelectorAll(".made")) link.onclick = make;
