"""The style of the page that `--html` writes: light and dark, one column on a phone, two on a desk."""

from typing import Final

__all__ = ["CSS"]

CSS: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5b6470; --rule: #dfe3e8; --faint: #eef0f3;
  --a: #2f6fde; --b: #d9730d; --c: #7a4fc9; --floor: #8a939e;
  --pass: #18794e; --warn: #9a6700; --fail: #c62a2f; --inconclusive: #6e56cf; --info: #4b5563;
  --pass-bg: #e6f6ec; --warn-bg: #fff4d6; --fail-bg: #ffe9e9; --inconclusive-bg: #efeafd; --info-bg: #eef0f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --card: #181c22; --ink: #e8ebef; --soft: #9aa4b0; --rule: #2b323b; --faint: #20262d;
    --a: #6ea0ff; --b: #f5a04c; --c: #b497ff; --floor: #8a939e;
    --pass: #5bd39a; --warn: #f2c14e; --fail: #ff7b80; --inconclusive: #b6a5ff; --info: #a9b3bf;
    --pass-bg: #12301f; --warn-bg: #34290c; --fail-bg: #3a1618; --inconclusive-bg: #241d40; --info-bg: #20262d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 22px; line-height: 1.3; margin: 2px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 4px; }
p { margin: 0; }
.eyebrow { color: var(--soft); font-size: 13px; letter-spacing: .02em; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 18px 20px; min-width: 0; }
.card > p.how { color: var(--soft); font-size: 13px; margin-bottom: 10px; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; margin-top: 16px; }
.grid > .wide { grid-column: 1 / -1; }
.verdict {
  display: flex; gap: 18px; align-items: center; margin-top: 18px; padding: 18px 20px; border-radius: 12px;
  border: 1px solid var(--rule); border-left: 6px solid currentColor;
}
.verdict .word { font-size: 26px; font-weight: 700; letter-spacing: .01em; white-space: nowrap; }
.verdict .why { color: var(--ink); min-width: 0; overflow-wrap: anywhere; }
.verdict .why b { font-weight: 600; }
.pass { color: var(--pass); } .warn { color: var(--warn); } .fail { color: var(--fail); }
.inconclusive { color: var(--inconclusive); } .info { color: var(--info); }
.verdict.pass { background: var(--pass-bg); } .verdict.warn { background: var(--warn-bg); }
.verdict.fail { background: var(--fail-bg); } .verdict.inconclusive { background: var(--inconclusive-bg); }
.tag {
  display: inline-block; border-radius: 99px; padding: 1px 9px; font-size: 12px; font-weight: 600; white-space: nowrap;
}
.tag.pass { background: var(--pass-bg); } .tag.warn { background: var(--warn-bg); }
.tag.fail { background: var(--fail-bg); } .tag.inconclusive { background: var(--inconclusive-bg); }
.tag.info { background: var(--info-bg); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px 20px; margin: 16px 0; }
dl.facts dt { color: var(--soft); font-size: 12px; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; font-size: 14px; }
.scroll { overflow-x: auto; margin: 0 -4px; padding: 0 4px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; font-size: 12px; color: var(--soft); border-bottom: 1px solid var(--rule); }
th, td { padding: 6px 10px 6px 0; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr + tr td { border-top: 1px solid var(--faint); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { overflow-wrap: break-word; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: break-word; }
.small { color: var(--soft); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin-bottom: 6px; }
.legend span::before {
  content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; background: var(--key);
}
.legend .line-key::before { height: 3px; border-radius: 2px; vertical-align: 4px; }
.key-a { --key: var(--a); } .key-b { --key: var(--b); } .key-c { --key: var(--c); } .key-floor { --key: var(--floor); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
svg text.faint { fill: var(--soft); opacity: .8; font-size: 10.5px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .series-a { fill: var(--a); } svg .series-b { fill: var(--b); } svg .series-c { fill: var(--c); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .line-a { stroke: var(--a); } svg .line-b { stroke: var(--b); } svg .line-c { stroke: var(--c); }
svg .floor { stroke: var(--floor); stroke-width: 1.8; stroke-dasharray: 4 2.5; }
svg .line-floor { stroke: var(--floor); stroke-dasharray: 4 2.5; }
svg .dot-a { fill: var(--a); } svg .dot-b { fill: var(--b); } svg .dot-floor { fill: var(--floor); }
svg .cell { fill: var(--a); } svg .cell.empty { fill: none; stroke: var(--fail); stroke-width: 1; }
.share { display: block; height: 6px; min-width: 60px; border-radius: 3px; background: var(--faint); overflow: hidden; }
.share span { display: block; height: 100%; background: var(--fail); }
ul.findings { list-style: none; margin: 8px 0 0; padding: 0; }
ul.findings li { padding: 9px 0; border-top: 1px solid var(--faint); }
ul.findings li:first-child { border-top: 0; }
ul.findings .head { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline; }
ul.findings .head b { overflow-wrap: anywhere; font-weight: 600; }
ul.findings code { color: var(--soft); font-size: 12px; }
ul.findings .body { overflow-wrap: anywhere; }
ul.findings .remedy::before { content: "→ "; color: var(--soft); }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; padding: 4px 0; }
@media (max-width: 760px) {
  main { padding: 18px 12px 40px; }
  .grid { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .card { padding: 14px 14px; border-radius: 10px; }
  .verdict { flex-direction: column; align-items: flex-start; gap: 4px; padding: 14px; }
  table { font-size: 13px; } th, td { padding-right: 8px; }
  .strip svg { min-width: 520px; }
}
"""
