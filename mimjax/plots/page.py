"""How report.html looks, light and dark; no font, script or picture from elsewhere."""

STYLE = """
:root{--bg:#fff;--ink:#1c1f23;--faint:#6b7178;--rule:#e3e6e9;--axis:#aab0b6;--box:#f6f7f8;
--warn:#fdf3dc;--warnline:#d9a520;
--c0:#2a6fc9;--c1:#d9622b;--c2:#16936a;--c3:#8a4fc4;--c4:#b08900;--c5:#c2407e;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#17191c;--ink:#e6e8ea;--faint:#9aa1a8;--rule:#2c3035;
--axis:#5b626a;--box:#1f2226;--warn:#3a3016;--warnline:#b98a14;
--c0:#6ea8f0;--c1:#f08b57;--c2:#4cc49a;--c3:#b98be8;--c4:#d8b53a;--c5:#e678ab}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1320px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 10px}
h3{font-size:15px;margin:20px 0 6px}
header p{margin:2px 0 16px;color:var(--faint)}
.tiles{display:flex;flex-wrap:wrap;gap:10px}
.tiles div{background:var(--box);border-radius:8px;padding:8px 16px;color:var(--faint);
font-size:13px;min-width:96px}
.tiles b{display:block;color:var(--ink);font-size:20px;font-weight:600;line-height:1.3;
font-variant-numeric:tabular-nums}
.warning{background:var(--warn);border-left:4px solid var(--warnline);border-radius:4px;
padding:10px 18px;margin-top:18px}
.warning h2{margin:0;font-size:15px}.warning ul{margin:4px 0;padding-left:18px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(360px,1fr));gap:18px 22px}
figure{margin:0}figcaption{font-weight:600;font-size:14px}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;font-size:12.5px;color:var(--faint);min-height:20px}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:5px;
vertical-align:middle}
svg{width:100%;height:auto;display:block}
svg path{fill:none;stroke-width:1.6;stroke-linejoin:round}
svg text{font-size:11px;fill:var(--faint);font-variant-numeric:tabular-nums}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}svg .label{font-size:11px}
.grid{stroke:var(--rule)}.axis{stroke:var(--axis)}
img{max-width:100%;height:auto;display:block;border:1px solid var(--rule);border-radius:4px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:12px}
.strip figcaption{font-weight:400;font-size:12.5px;color:var(--faint)}
table{border-collapse:collapse;font-size:13.5px;margin:6px 0 14px;display:block;overflow-x:auto}
th,td{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid var(--rule);
vertical-align:top;overflow-wrap:anywhere}
th{color:var(--faint);font-weight:600;white-space:nowrap}
td{font-variant-numeric:tabular-nums}
pre{background:var(--box);padding:12px 16px;border-radius:6px;overflow-x:auto;font-size:12.5px}
summary{cursor:pointer;color:var(--faint)}
"""
