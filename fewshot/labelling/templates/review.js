"use strict";
// Without JavaScript the page is read, and corrections.csv filled in by hand.
const form = document.querySelector("form.controls"), choice = document.getElementById("choice");
const data = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll("#together .card")].map(card => {
  const select = choice.content.querySelector("select").cloneNode(true);
  card.append(select);
  return { card, select, known: data.rows[card.dataset.row] };  // file, predicted, probability, sha256
});
let unsaved = false;
const corrected = () => cards.filter(({ select }) => select.value !== "");
const quoted = text => `"${text.replaceAll('"', '""')}"`;
const csv = () => [data.columns, ...corrected().map(({ select, known: [file, predicted, probability, sha256] }) =>
  [file, predicted, probability, select.value, data.folder, sha256])].map(row => row.map(quoted).join(",") + "\n").join("");
const count = () => {
  const number = corrected().length, button = form.elements.save;
  for (const { card, select } of cards) card.classList.toggle("corrected", select.value !== "");
  button.disabled = number === 0;
  button.textContent = number === 1 ? "Save 1 correction" : number ? `Save ${number} corrections` : "Save corrections";
};
const filter = () => {
  const predicted = form.elements.predicted.value, low = form.elements.low.checked;
  for (const { card, known } of cards) {
    card.hidden = (predicted !== "" && known[1] !== predicted) || (low && !card.classList.contains("low"));
  }
};
document.getElementById("together").addEventListener("change", () => { unsaved = true; count(); });
form.addEventListener("change", filter);
form.addEventListener("submit", event => {
  event.preventDefault();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);  // when the browser has taken it
  unsaved = false;
});
addEventListener("beforeunload", event => { if (unsaved && corrected().length) event.preventDefault(); });
form.hidden = false;
count();  // a reloaded page may keep what was chosen
filter();
