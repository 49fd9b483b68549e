"""The style sheet of a report."""

CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid #d0d0d0; }
p { max-width: 46rem; margin: 0.5rem 0; }
.about { columns: 26rem 2; column-gap: 2rem; font-size: 0.95rem; }
.about p { max-width: none; margin: 0 0 0.6rem; break-inside: avoid; }
p.lead { font-size: 1.05rem; max-width: 60rem; }
p.note, figcaption, footer { color: #555; font-size: 0.86rem; }
p.note { max-width: none; }
small { color: #555; font-size: 0.85em; }
footer { margin-top: 2.5rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem 2rem;
  align-items: start; }
figure { margin: 0.5rem 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: 0.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
th, td { padding: 0.35rem 0.55rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { border-bottom: 2px solid #1a1a1a; font-weight: 600; }
td { border-bottom: 1px solid #e2e2e2; }
th.t, td.t { text-align: left; }
.long { white-space: normal; display: inline-block; max-width: 17rem; }
.wrap { white-space: normal; display: inline-block; max-width: 42rem; }
th:first-child, td:first-child { padding-left: 0; }
.best { background: #e3f1df; padding: 0.1rem 0.35rem; border-radius: 3px; }
small.over { color: #a1160f; font-weight: 600; }
.key { height: 0.75em; width: auto; margin-right: 0.45em; vertical-align: -0.03em; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; padding: 0.5rem 0; font-size: 0.92rem; background: #fff; }
pre { background: #f6f6f6; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.84rem; line-height: 1.4; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; }
@media (max-width: 44rem) { td.t small { white-space: normal; display: inline-block; max-width: 9rem; } }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  h2 { break-after: avoid; }
  figure, table, tr { break-inside: avoid; }
  .grid { grid-template-columns: 1fr 1fr; gap: 0.6rem 1rem; }
  .scroll { overflow: visible; }
  pre { white-space: pre-wrap; }
  .best, .key, rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
