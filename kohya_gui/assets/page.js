// The little the page does in the browser: error lines beside their fields, whole help texts, the search over all
// options, and keeping what was typed.
(function () {
  "use strict";
  const state = { problems: [], observer: null, touched: false };

  function fieldOf(option) {
    return document.getElementById("opt-" + option);
  }

  function place(problem) {
    const field = fieldOf(problem.option);
    if (!field) return false;
    const id = "err-" + problem.option;
    let line = document.getElementById(id);
    if (!line) {
      line = document.createElement("div");
      line.id = id;
      line.setAttribute("role", "alert");
      field.appendChild(line);
    }
    if (line.textContent !== problem.text || line.parentElement !== field) {
      line.textContent = problem.text;
      field.appendChild(line);
    }
    line.className = "field-" + problem.severity;
    field.classList.toggle("has-error", problem.severity === "error");
    const input = field.querySelector("input, textarea");
    if (input) {
      input.setAttribute("aria-describedby", id);
      input.setAttribute("aria-invalid", problem.severity === "error");
    }
    return true;
  }

  function clear(option) {
    const line = document.getElementById("err-" + option);
    if (line) line.remove();
    const field = fieldOf(option);
    if (!field) return;
    field.classList.remove("has-error");
    const input = field.querySelector("[aria-invalid]");
    if (input) input.removeAttribute("aria-invalid");
  }

  // fields that are drawn later (all options, another tab) get their line when they appear
  function watch() {
    if (state.observer) return;
    let waiting = false;
    state.observer = new MutationObserver(function () {
      if (waiting || !state.problems.length) return;
      waiting = true;
      requestAnimationFrame(function () {
        waiting = false;
        state.problems.forEach(function (p) {
          const line = document.getElementById("err-" + p.option);
          if (!line && fieldOf(p.option)) place(p);
        });
      });
    });
    state.observer.observe(document.body, { childList: true, subtree: true });
  }

  function reveal(option) {
    const field = fieldOf(option);
    if (!field) return;
    field.scrollIntoView({ block: "center", behavior: "auto" });
    const input = field.querySelector("input, textarea, button");
    if (input) input.focus({ preventScroll: true });
  }

  // {problems, live, checked}: live ones were found while typing; they replace the lines of `checked` and scroll nowhere
  function showProblems(text) {
    const said = text ? JSON.parse(text) : { problems: [] };
    const gone = said.live ? state.problems.filter(function (p) { return said.checked.includes(p.option); }) : state.problems;
    gone.forEach(function (p) { clear(p.option); });
    state.problems = state.problems.filter(function (p) { return !gone.includes(p); }).concat(said.problems);
    watch();
    said.problems.forEach(place);
    const first = said.problems.find(function (p) { return p.severity === "error"; });
    if (first && !said.live) setTimeout(function () { reveal(first.option); }, 150);
  }

  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    document.querySelectorAll("#all-options .option-group").forEach(function (group) {
      let inGroup = 0;
      group.querySelectorAll(".field").forEach(function (field) {
        const hay = (field.id + " " + field.textContent).toLowerCase();
        const hit = words.every(function (word) { return hay.includes(word); });
        field.classList.toggle("not-found", !hit);
        inGroup += hit ? 1 : 0;
      });
      group.classList.toggle("not-found", inGroup === 0);
      found += inGroup;
    });
    const above = words.length ? Array.from(document.querySelectorAll("#basic .field")).filter(function (field) {
      const hay = (field.id + " " + field.textContent).toLowerCase();
      return words.every(function (word) { return hay.includes(word); });
    }) : [];
    const note = document.getElementById("search-note");
    if (!note) return;
    note.textContent = "";
    if (words.length) note.append(found + (found === 1 ? " option" : " options") + " here");
    if (above.length) {
      note.append("; further up: ");
      above.forEach(function (field) {
        const link = document.createElement("a");
        link.href = "#" + field.id;
        link.textContent = field.id.replace("opt-", "") + " ";
        note.append(link);
      });
    }
  }

  document.addEventListener("input", function (event) {
    const field = event.target.closest && event.target.closest(".field");
    if (field && field.id.startsWith("opt-")) {
      const option = field.id.slice(4);
      state.problems = state.problems.filter(function (p) { return p.option !== option; });
      clear(option);
    }
    if (event.target.closest && event.target.closest("#search-options")) search(event.target.value);
  });

  // a help text that does not fit its two lines, below its field while one points at it or is in the field
  function showHelp(info) {
    hideHelp();
    const field = info && info.closest(".field");
    if (!field || info.scrollHeight <= info.clientHeight + 1) return;
    const help = document.createElement("div");
    help.id = "help";
    help.append(...info.cloneNode(true).childNodes);
    const box = field.getBoundingClientRect();
    const width = Math.min(Math.max(box.width, 300), innerWidth - 16);
    help.style.width = width + "px";
    help.style.left = Math.max(8, Math.min(box.left, innerWidth - width - 8)) + "px";
    document.querySelector(".gradio-container").append(help);
    const below = box.bottom + 4;
    const bar = document.getElementById("plan-bar").getBoundingClientRect();
    const end = bar.height ? bar.top : innerHeight;
    help.style.top = (below + help.offsetHeight < end ? below : Math.max(4, box.top - help.offsetHeight - 4)) + "px";
  }

  function hideHelp() {
    const help = document.getElementById("help");
    if (help) help.remove();
  }

  function infoOf(target) {
    return target.closest && target.closest(".field") ? target.closest(".field").querySelector(".info-text") : null;
  }

  document.addEventListener("mouseover", function (event) {
    const info = event.target.closest && event.target.closest(".field .info-text");
    if (info) showHelp(info);
  });
  document.addEventListener("mouseout", function (event) {
    if (event.target.closest && event.target.closest(".field .info-text")) hideHelp();
  });
  document.addEventListener("focusin", function (event) { showHelp(infoOf(event.target)); });
  document.addEventListener("focusout", hideHelp);
  document.addEventListener("scroll", hideHelp, true);

  document.addEventListener("click", function (event) {
    const link = event.target.closest && event.target.closest("a[href^='#opt-']");
    if (!link) return;
    event.preventDefault();
    reveal(link.getAttribute("href").slice(5));
  });

  // what is typed on the Train tab stays in this browser, from the first change by hand on; the two cards begin anew
  const TYPED = "studio-typed";
  const DESCRIBED = "studio-described";
  const TYPED_IN = "#basic, #side, #all-options, #browser";

  function put(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // a browser that keeps nothing: a reload then shows the example, as on the first day
    }
  }

  function get(key) {
    try {
      return localStorage.getItem(key) || "";
    } catch {
      return "";
    }
  }

  function store(card, values) { put(TYPED, { version: 1, card: card, values: values }); }

  // the Dataset tab's description with what belongs to it, saved in a file or not
  function describe(values) { if (values[1]) put(DESCRIBED, values); }

  function keep(names, values) {
    if (!state.touched) return;
    const typed = {};
    // a table hands over its rows with their headings
    names.forEach(function (name, index) { typed[name] = values[index]?.data ?? values[index]; });
    store(document.querySelector("#card-own.chosen") ? "own" : "", typed);
  }

  function startFresh(card) {
    state.touched = false;
    store(card, null);
  }

  ["input", "click", "drop"].forEach(function (name) {
    document.addEventListener(name, function (event) {
      if (event.target.closest && event.target.closest(TYPED_IN)) state.touched = true;
    }, true);
  });

  // the folder dialog: focus goes in, Escape closes it, focus goes back
  let cameFrom = null;
  function enterDialog(id) {
    const dialog = document.getElementById(id);
    if (!dialog) return;
    cameFrom = document.activeElement;
    dialog.setAttribute("role", "dialog");
    dialog.setAttribute("aria-modal", "true");
    dialog.setAttribute("aria-label", "Choose on this machine");
    const box = dialog.querySelector("textarea, input");
    if (box) box.focus();
  }

  document.addEventListener("keydown", function (event) {
    const buttons = Array.from(document.querySelectorAll("#browser-close, #ds-browser-close"));
    const close = buttons.find(function (button) { return button.offsetParent; });
    if (event.key !== "Escape" || !close) return;
    close.click();
    if (cameFrom) cameFrom.focus();
  });

  window.studio = {
    enterDialog: enterDialog, showProblems: showProblems, reveal: reveal, keep: keep, startFresh: startFresh,
    describe: describe, kept: function () { return get(TYPED); }, described: function () { return get(DESCRIBED); }
  };
})();
