"use strict";
for (const box of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  const inputs = [...box.querySelectorAll('input[type="range"]')];
  const outputs = [...box.querySelectorAll("output")];
  const paths = [...box.querySelectorAll("path[data-path]")];
  const words = [...box.querySelectorAll("[data-word]")];
  const show = () => {
    let n = 0;
    inputs.forEach((input, k) => {
      const at = Number(input.value);
      n = n * data.sizes[k] + at;
      outputs[k].textContent = data.shown[k][at];
      input.setAttribute("aria-valuetext", data.said[k][at]);
    });
    for (const path of paths) path.setAttribute("d", data.strings[data.frames[n][path.dataset.path]]);
    for (const word of words) word.textContent = data.strings[data.words[n][word.dataset.word]];
  };
  for (const input of inputs) input.addEventListener("input", show);
  for (const hidden of box.querySelectorAll(".controls")) hidden.hidden = false;
  show();
}
