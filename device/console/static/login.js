// Why a login was refused.

const given = new URLSearchParams(location.search), refused = document.getElementById("refused");
const wait = Number(given.get("wait"));
if (wait) refused.textContent = `Too many tries. Wait ${wait} seconds.`;
else if (given.has("wrong")) refused.textContent = "This name and password do not fit.";
refused.hidden = !refused.textContent;
