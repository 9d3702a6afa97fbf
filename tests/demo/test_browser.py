"""The real page in a real browser: `pytest -m browser`. VFMTOK_SHOTS=FOLDER keeps the screenshots."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import tiny_vfmae
import torch
from image_makers import encoded, environment, write_tree
from PIL import Image

import vfmtok
from vfmtok.demo import studio as room
from vfmtok.demo.studio import Studio
from vfmtok.pretrained.loading import load_tokenizer
from vfmtok.weights.hashing import tokenizer_hash

pytestmark = pytest.mark.browser
WAIT = 60  # seconds for an answer of the page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tiny_models.write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def studio(runs):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server has: sums are taken in the same order
    yield Studio(load_tokenizer(runs[0]), vfmtok.from_pretrained(runs[1], "generator"), ["apple", "bird", "cup"])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def address(runs):
    with served("--vq-ckpt", runs[0], "--gpt", runs[1]) as address:
        yield address


@contextlib.contextmanager
def served(*arguments) -> Iterator[str]:
    """The address of `vfmtok demo ARGUMENTS`, a process that ends with the context."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vfmtok", "demo", "--port", str(port), *map(str, arguments)]
    server = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        assert server.poll() is None, server.stdout.read()
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130), server.stdout.read()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1300"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def page(browser, address, tmp_path):
    browser.get(address)
    yield Page(browser, address, Path(os.environ.get("VFMTOK_SHOTS", tmp_path)))
    assert browser.get_log("browser") == []  # nothing failed unseen


class Page:
    """What a person does on the page and sees on it."""

    def __init__(self, browser, address: str, shots: Path, shows: str = "button[role=tab]"):
        self.browser, self.address, self.shots = browser, address, shots
        self.until(lambda: self.all(shows))

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def until(self, found):
        """The first true answer of ``found``; the page redraws as it likes, so a stale element is asked for again, and
        so is an image that is not there yet."""
        from selenium.common.exceptions import WebDriverException

        deadline, last = time.monotonic() + WAIT, None
        while time.monotonic() < deadline:
            try:
                answer = found()
            except (WebDriverException, OSError) as error:
                answer, last = None, error
            if answer:
                return answer
            time.sleep(0.2)
        self.browser.save_screenshot(str(self.shots / "timeout.png"))
        raise AssertionError(f"nothing came in {WAIT} s: {last}")

    def click(self, selector: str, x: float | None = None, y: float = 0.5) -> None:
        """In its middle, or at a share of its width and height."""
        element = self.until(lambda: [e for e in self.all(selector) if e.is_displayed()])[0]
        if x is None:
            element.click()
            return
        from selenium.webdriver import ActionChains

        size = element.size
        offset = ((x - 0.5) * size["width"], (y - 0.5) * size["height"])
        ActionChains(self.browser).move_to_element_with_offset(element, *map(round, offset)).click().perform()

    def open_tab(self, name: str) -> None:
        self.until(lambda: [t for t in self.all("button[role=tab]") if t.text == name])[0].click()

    def write(self, selector: str, text: str) -> None:
        from selenium.webdriver import Keys

        field = self.until(lambda: self.all(selector))[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)

    def pictures(self, selector: str) -> list[np.ndarray]:
        """The images as the server sent them."""
        sources = [image.get_attribute("src") for image in self.all(f"{selector} img")]
        loaded = [urllib.request.urlopen(source, timeout=10).read() for source in sources]
        return [np.array(Image.open(io.BytesIO(content)).convert("RGB")) for content in loaded]

    def until_shows(self, selector: str, expected: list[Image.Image]) -> None:
        def shown():
            found = self.pictures(selector)
            return len(found) == len(expected) and all(map(np.array_equal, found, map(np.array, expected)))

        self.until(shown)

    def shoot(self, name: str) -> None:
        path = self.shots / f"{name}.png"
        self.browser.save_screenshot(str(path))
        assert np.array(Image.open(path).convert("L")).std() > 10  # there is something on it


def test_a_class_is_sampled(page, studio):
    page.write("#class input", "cup")
    page.write("#seed input", "5")  # Enter samples
    page.until_shows("#samples .grid-container", room.sample(studio, 2, 8, cfg_scale=2.0, seed=5)[0])
    assert "8 x cup, CFG 2, seed 5" in page.all("#about-samples")[0].text
    page.write("#seed input", "6")
    page.until_shows("#samples .grid-container", room.sample(studio, 2, 8, cfg_scale=2.0, seed=6)[0])
    page.shoot("sample")


def test_an_image_is_tokenized_and_tokens_are_chosen(page, studio, tmp_path):
    page.open_tab("Image to tokens")
    page.until(lambda: page.all("#points img"))  # of the first example
    path = write_tree(tmp_path, {"mine.jpg": encoded(7, (90, 70))}) / "mine.jpg"
    page.until(lambda: page.all("#upload input[type=file]"))[0].send_keys(str(path))
    found = room.tokenize(studio, path)
    page.until_shows("#reconstruction", [room.enlarged(found.decoded)])
    page.until_shows("#ids", [room.draw_ids(studio, found, [5, 6, 9, 10])])
    assert f"PSNR {found.psnr:.2f} dB" in page.all("#about-tokens")[0].text
    page.click("#ids img", x=3.5 / 4, y=0.5 / 4)  # token 3
    page.until_shows("#points", [room.draw_points(studio, found, [5, 6, 9, 10, 3])])
    page.write("#tokens textarea", "0, 15")
    page.click("#go-points")
    page.until_shows("#points", [room.draw_points(studio, found, [0, 15])])
    page.shoot("tokens")
    page.write("#tokens textarea", "99")
    page.click("#go-points")
    page.until(lambda: "each from 0 to 15, got '99'" in page.all("body")[0].text)  # and the page lives on
    page.until_shows("#points", [room.draw_points(studio, found, [0, 15])])


def test_tokens_of_two_images_are_mixed(page, studio, tmp_path):
    page.open_tab("Mix two images")
    page.until(lambda: page.all("#mixed img"))
    files = write_tree(tmp_path, {"a.png": encoded(8, (40, 40), "PNG"), "b.png": encoded(9, (40, 40), "PNG")})
    for name, file in (("#first", "a.png"), ("#second", "b.png")):
        page.until(lambda name=name: page.all(f"{name} input[type=file]"))[0].send_keys(str(files / file))
    pair = [room.tokenize(studio, files / name) for name in ("a.png", "b.png")]
    mask = room.pattern("left and right", (4, 4), 0.5)
    page.until_shows("#mixed", [room.enlarged(room.mix(studio, *pair, mask))])
    page.click("#pattern input[value=checkerboard]")
    mask = room.pattern("checkerboard", (4, 4), 0.5)
    page.until_shows("#mixed", [room.enlarged(room.mix(studio, *pair, mask))])
    page.until_shows("#choice", [room.draw_choice(studio, *pair, mask)])
    page.click("#choice img", x=2.5 / 4, y=1.5 / 4)
    mask[1, 2] = not mask[1, 2]
    page.until_shows("#mixed", [room.enlarged(room.mix(studio, *pair, mask))])
    page.until_shows("#choice", [room.draw_choice(studio, *pair, mask)])
    page.shoot("mix")


def test_a_folder_s_systems_are_chosen_from_a_list(browser, runs, tmp_path):
    """One of ids and one of latents, each with its own settings."""
    tokenizer, dit = tiny_vfmae.tokenizer(), tiny_vfmae.dit()
    vfmtok.save_pretrained(tokenizer, runs[0].parent / "vfmae")
    vfmtok.save_pretrained(dit, runs[0].parent / "vfmae_dit", tokenizer_hash=tokenizer_hash(tokenizer))
    with served(runs[0].parent) as address:
        browser.get(address)
        page = Page(browser, address, Path(os.environ.get("VFMTOK_SHOTS", tmp_path)), "#systems a")
        links = {link.text.partition("/")[2]: link.get_attribute("href") for link in page.all("#systems a")}
        assert set(links) == {"gpt", "vfmae_dit"}
        page.shoot("systems")
        browser.get(links["vfmae_dit"])
        page.until(lambda: page.all("#seed input"))
        page.write("#seed input", "5")
        studio = Studio(tokenizer, dit, None)
        page.until_shows("#samples .grid-container", room.sample(studio, 0, 8, cfg_scale=2.0, seed=5)[0])
        page.open_tab("Image to latents")
        page.until(lambda: page.all("#reconstruction img"))  # of the first example, as the page was loaded
        page.shoot("latents")
        page.until(lambda: [e for e in page.all("nav a, nav button") if e.text == "All systems"])[0].click()
        page.until(lambda: page.all("#systems a"))
        browser.get(links["gpt"])
        page.until(lambda: page.all("#seed input"))
        assert "Temperature" in browser.page_source and "Shift" not in browser.page_source
    assert browser.get_log("browser") == []
