"use strict";
// Without JavaScript the page is complete, in the order of the files.
const form = document.querySelector("form.controls"), together = document.getElementById("together");
const sections = [...document.querySelectorAll("section")];
const cards = [...document.querySelectorAll("section .card")].map(card => ({
  card, home: card.parentNode, row: Number(card.dataset.row), p: Number(card.dataset.p) }));
const arrange = () => {
  const order = form.elements.order.value, grouped = form.elements.grouped.checked, low = form.elements.low.checked;
  const sign = order === "up" ? 1 : order === "down" ? -1 : 0;
  cards.sort((a, b) => sign * (a.p - b.p) || a.row - b.row);
  for (const { card, home } of cards) {
    (grouped ? home : together).append(card);
    card.hidden = low && !card.classList.contains("low");
  }
  together.hidden = grouped;
  for (const section of sections) section.hidden = !grouped;
};
form.addEventListener("change", arrange);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
arrange();  // a reloaded page keeps what was chosen
