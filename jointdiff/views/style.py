"""The one style sheet of all pages: calm, light and dark, narrow and printed; no font or image from elsewhere."""

from __future__ import annotations

# Okabe and Ito's palette (told apart in all common forms of colour blindness), lightened for dark paper.
CSS = """
:root {
  --paper: #fdfdfb; --card: #f5f4ef; --ink: #1d1f21; --soft: #5b6066; --line: #dddad0; --rule: #e9e7df;
  --accent: #0b5c8f; --good: #00694d; --warn: #9a4700;
  --s0: #0072b2; --s1: #d55e00; --s2: #007f5f; --s3: #b0508a; --s4: #b87a00; --s5: #2f8fc4; --heat: 0,114,178;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181a; --card: #1f2225; --ink: #e6e4df; --soft: #a0a4a8; --line: #3a3e42; --rule: #2b2e31;
  --accent: #7cc0ec; --good: #4fc7a1; --warn: #f0a35e;
  --s0: #56a9e0; --s1: #f08a4b; --s2: #35b892; --s3: #dd93bd; --s4: #e3b341; --s5: #8fd0f5; --heat: 86,169,224;
} }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; margin: 1.4rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; font-weight: 650; margin: 3rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 650; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible, .card:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.soft, .note, figcaption, caption { color: var(--soft); font-size: .875rem; }
.lead { color: var(--soft); margin-top: 0; }
.banner { border-left: 4px solid var(--accent); background: var(--card); padding: .55rem .9rem; margin: 0; max-width: none; font-size: .925rem; }
.banner strong { margin-right: .35rem; }
.banner .research { display: block; font-weight: 600; }
.banner.real, .banner.unknown { border-left-color: var(--warn); }
.alert { border-left: 4px solid var(--warn); background: var(--card); padding: .55rem .9rem; max-width: none; }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0 0; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; background: var(--line);
  border: 1px solid var(--line); border-radius: 6px; overflow: hidden; margin: 1.3rem 0 .6rem; }
.headline > div { background: var(--paper); padding: .8rem .95rem .7rem; }
.headline dt { color: var(--soft); font-size: .825rem; }
.headline dd { margin: 0; font-size: 1.75rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.headline small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); letter-spacing: 0; line-height: 1.35; margin-top: .15rem; }
dl { margin: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .55rem 1.5rem; margin: .7rem 0; font-size: .925rem; }
.facts dt { color: var(--soft); font-size: .825rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
caption { text-align: left; caption-side: top; padding-bottom: .3rem; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: .825rem; vertical-align: bottom; border-bottom-color: var(--line); }
tbody th { max-width: 18rem; overflow-wrap: anywhere; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 0; padding-left: .9rem; }
tr.total th, tr.total td { font-weight: 600; border-top: 1px solid var(--line); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
figure { margin: .6rem 0 1rem; break-inside: avoid; }
figcaption { margin-bottom: .35rem; }
figcaption b { color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--line); }
svg .series { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .main { stroke-width: 3; } svg .crowd { stroke-width: 1; opacity: .55; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .84rem; list-style: none; margin: .1rem 0 0; padding: 0; }
.legend li { display: flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; } .legend svg { width: 30px; flex: none; }
.matrix td { text-align: center; padding: .5rem .8rem; border: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
.matrix table { min-width: 0; } .matrix td.right { font-weight: 650; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .5rem 3rem; align-items: start; }
img.pixels { image-rendering: pixelated; display: block; max-width: 100%; height: auto; border-radius: 3px; background: #000; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1rem; list-style: none; margin: .8rem 0; padding: 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .8rem .9rem .7rem; break-inside: avoid; scroll-margin-top: 1rem; }
.card:target { border-color: var(--accent); }
.card h3 { margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: 0 .6rem; justify-content: space-between; font-size: .95rem; }
.card h3 a { color: inherit; text-decoration: none; } .card h3 a:hover { text-decoration: underline; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; } .triple figure { margin: 0; }
.triple figcaption { margin: .2rem 0 0; text-align: center; font-size: .78rem; } .triple img { width: 100%; }
.bars { margin-top: .6rem; font-size: .82rem; } .bars table { min-width: 100%; font-size: inherit; }
.bars th, .bars td { padding-top: .12rem; padding-bottom: .12rem; border: 0; } .bars tbody th { max-width: 9rem; }
.bars .track { width: 40%; vertical-align: middle; } .bars svg { height: 18px; }
.ok { color: var(--good); } .bad { color: var(--warn); } .ok, .bad { font-weight: 600; font-size: .85rem; white-space: nowrap; }
@media (max-width: 30rem) { main { padding: .75rem .9rem 3rem; } h1 { font-size: 1.4rem; } .headline { grid-template-columns: 1fr 1fr; } }
@media print {
  :root { --paper: #fff; --card: #f5f4ef; --ink: #000; --soft: #444; --line: #bbb; --rule: #ddd; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav, .screen { display: none; }
  h2, h3 { break-after: avoid; } tr, .card, .banner { break-inside: avoid; } .scroll { overflow: visible; }
  .charts { grid-template-columns: 1fr 1fr; } a { color: inherit; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
