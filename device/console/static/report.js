// The report's buttons.

document.getElementById("print").onclick = () => print();
document.getElementById("pdf").onclick = async (event) => {
  // Fetched first, so that a refusal is one line here and not another page.
  event.preventDefault();
  const link = event.currentTarget, name = link.textContent;
  link.textContent = "PDF is being made…";
  const answer = await fetch(link.href).catch(() => null);
  link.textContent = name;
  if (!answer?.ok) { link.after(` ${answer ? await answer.text() : "the box does not answer"}`); return; }
  const address = URL.createObjectURL(await answer.blob());
  Object.assign(document.createElement("a"), { href: address, download: `${link.dataset.name}.pdf` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
};
