"""Pictures of the site and the report, at a phone's and a laptop's width, some of them dark as well, in few colours.

    python docs/screenshots.py --site _docs --report runs/smoke/report.html --out docs/screenshots
"""
import argparse, io, os, shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
SIZES = {"phone": (360, 740, "light"), "phone-dark": (360, 740, "dark"), "laptop": (1280, 800, "light"), "laptop-dark": (1280, 800, "dark")}
SHOWN = {"landing": ("index.html", "h1"), "steering": ("steering.html", "#fig-doses"), "results": ("results.html", "h1")}
DARK, MOST_BYTES = {"landing", "report-doses"}, 150_000


def small(png: bytes, path: Path) -> None:
    "Write a picture with as many of 256, 128, 64, 32 colours as stay below the limit."
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32):
        picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MOST_BYTES: return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes with 32 colours: show a smaller part of the page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("site", "report", "out"): parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    places = {name: (args.site/page, at) for name, (page, at) in SHOWN.items()} | {"report": (args.report, "h1"), "report-doses": (args.report, "#h-doses")}
    with sync_playwright() as play:
        program = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = play.chromium.launch(executable_path=program, args=QUIET, chromium_sandbox=os.geteuid() != 0)
        for size, (width, height, scheme) in SIZES.items():
            tab = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
            for name, (page, at) in places.items():
                if scheme == "dark" and name not in DARK: continue
                tab.goto(page.resolve().as_uri())
                if at != "h1": tab.locator(at).evaluate("place => place.scrollIntoView()")
                if name == "report-doses": tab.locator("#dose-charts .trace").last.locator(".point").nth(2).hover(force=True)
                tab.wait_for_timeout(400)
                small(tab.screenshot(), args.out/f"{name}-{size}.png")
        browser.close()


if __name__ == "__main__": main()
