"""The command line as a user meets it: real files in, files and exit codes out."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.cli import main
from fastscnn.inference.plan import table
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import read_image
from fastscnn.media.outputs import plan_jobs, write_image

SCENE = street_scene(96, 128)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(SCENE).save(path)
    return path


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failed command prints."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fastscnn: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_overlay_labels_and_color(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--overlay", "--labels", "--color", "--size", "96x128", "--opacity", "0.25"]
    assert main(["segment", str(photo), "-o", str(out), *options]) == 0
    expected = fastscnn.load().segment(SCENE, size=(96, 128))
    with Image.open(out / "photo_labels.png") as im:
        assert im.mode == "P"
        assert np.array_equal(np.array(im), expected)
        assert im.getpalette()[: 3 * 11] == [v for c in fastscnn.CAMVID.colors for v in c]
    color = read_image(out / "photo_color.png")
    assert np.array_equal(color, np.array(fastscnn.CAMVID.colors, np.uint8)[expected])
    mixed = 0.75 * SCENE + 0.25 * color
    assert np.abs(read_image(out / "photo_overlay.png") - mixed).max() <= 1
    assert sorted(p.name for p in out.iterdir()) == [
        "photo_color.png",
        "photo_labels.png",
        "photo_overlay.png",
    ]


def test_summary_and_working_size(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(photo), "-o", str(tmp_path / "one.png")]) == 0
    out, err = capsys.readouterr()
    assert "frame 96x128 -> network input" in err
    assert "working size" in err
    assert "1 of 1 input(s)" in out
    labels = fastscnn.load().segment(SCENE)
    assert shares(out) == {
        name: f"{100 * (labels == c).mean():.1f}"
        for c, name in enumerate(fastscnn.CAMVID.names)
        if (labels == c).any()
    }
    tinted = fastscnn.overlay(SCENE, labels, fastscnn.CAMVID)
    assert np.array_equal(read_image(tmp_path / "one.png"), tinted)


def shares(text: str) -> dict[str, str]:
    """Per cent by class, as a summary lists them."""
    return dict(re.findall(r"^  (\w+) +([\d.]+) %  #", text, re.M))


def test_a_summary_is_of_all_pictures_under_their_own_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and colours are those of the weights' card."""
    names, colors = ("one", "two", "three"), ((1, 2, 3), (40, 50, 60), (200, 210, 220))
    model = fastscnn.load(None, num_classes=3, device="cpu")
    pictures = {"a.PNG": SCENE, "b.png": np.ascontiguousarray(SCENE[:, ::-1]), "c.png": SCENE[::2]}
    with torch.no_grad():
        scores = model.scores(model.preprocess(SCENE))
        model.classifier.conv.bias -= scores.mean((0, 2, 3))  # so that all classes are predicted
    card = Card(model.config, 3, names, colors)
    save(model, tmp_path / "w.safetensors", card)
    (tmp_path / "in").mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).convert("RGBA").save(tmp_path / "in" / name, "PNG")
    argv = ["segment", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--color"]
    assert main([*argv, "--weights", str(tmp_path / "w.safetensors")]) == 0
    text = capsys.readouterr().out
    labels = {name: model.segment(picture) for name, picture in pictures.items()}
    counts = sum(np.bincount(x.ravel(), minlength=3) for x in labels.values())
    percent = [f"{100 * n / counts.sum():.1f}" for n in counts]
    assert shares(text) == {n: p for n, p, c in zip(names, percent, counts, strict=True) if c}
    assert "3 file(s): RGBA converted to RGB" in text
    assert "3 frame(s), " in text
    assert "3 of 3 input(s)" in text
    for name, found in labels.items():
        color = read_image(tmp_path / "out" / f"{name[0]}_color.png")
        assert np.array_equal(color, np.array(colors, np.uint8)[found])


def test_patterns_and_folders_find_pictures_as_a_shell_does(tmp_path: Path) -> None:
    for name in ("a.JPG", "deep/er/b.png", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(text: str) -> list[str]:
        jobs = plan_jobs([text], tmp_path / "out", ["overlay"], force=False)
        return [str(job.source.relative_to(tmp_path)) for job in jobs]

    assert found(str(tmp_path)) == ["a.JPG"]
    assert found(str(tmp_path / "**/*.png")) == ["deep/er/b.png"]


def test_an_input_is_not_overwritten_under_another_name(photo: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is an input and would be overwritten"):
        plan_jobs([str(photo)], link / "photo.png", ["overlay"], force=True)


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"before")

    def full(self: Image.Image, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(Image.fromarray(SCENE), path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_nothing_is_overwritten_without_force(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "photo_overlay.png"
    target.write_bytes(b"mine")
    assert main(["segment", str(photo), "-o", str(tmp_path)]) == 2
    assert "--force overwrites" in error(capsys)
    assert target.read_bytes() == b"mine"
    assert main(["segment", str(photo), "-o", str(tmp_path), "--force"]) == 0
    assert target.read_bytes() != b"mine"


def test_folder_with_bad_files_does_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(SCENE).save(folder / "a.jpg")
    Image.fromarray(SCENE).convert("L").save(folder / "gray.png")
    Image.fromarray(SCENE).convert("RGBA").save(folder / "rgba.png")
    kinds = ["gif", *(["avif"] if features.check("avif") else [])]
    for kind in kinds:
        Image.fromarray(SCENE).save(folder / f"{kind}.{kind}")
    Image.fromarray(SCENE[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("not an image")
    Image.new("RGB", (20, 64)).save(folder / "tiny.png")
    assert main(["segment", str(folder), "-o", str(tmp_path / "out"), "--size", "64x96"]) == 1
    out, err = capsys.readouterr()
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [
        f"{n}_overlay.png" for n in sorted(["a", "deep", "gray", "rgba", "tiny", *kinds])
    ]
    assert "empty.jpg: it is empty" in err
    assert "cut.jpg: cannot be read" in err
    assert "L converted to RGB" in err
    assert f"{5 + len(kinds)} of {7 + len(kinds)} input(s)" in out


def test_small_image_needs_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 64)).save(tmp_path / "tiny.png")
    weights = tmp_path / "plain.safetensors"
    save(fastscnn.FastSCNN(5), weights)
    code = main(
        [
            "segment",
            str(tmp_path / "tiny.png"),
            "-o",
            str(tmp_path / "out"),
            "--weights",
            str(weights),
        ]
    )
    assert code == 2
    assert "64x20" in error(capsys)


def test_exif_rotation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees
    Image.fromarray(SCENE).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg").astype(int)
    assert turned.shape == (128, 96, 3)
    assert np.abs(turned - np.rot90(SCENE, -1)).mean() < 4


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 1], deep >> 8)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.linspace(0, 1, 64 * 64, dtype=np.float32), "floating-point pixels from 0 to 1"),
        (np.full(64 * 64, np.nan, np.float32), "floating-point pixels"),
        (np.linspace(-5, 300000, 64 * 64).astype(np.int32), "pixels from -5 to 300000"),
    ],
    ids=["float", "nan", "32 bit"],
)
def test_pixels_without_a_known_white_are_refused(
    tmp_path: Path, pixels: np.ndarray, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They used to come out black, or wrapped around."""
    Image.fromarray(pixels.reshape(64, 64)).save(tmp_path / "depth.tif")
    assert main(["segment", str(tmp_path / "depth.tif"), "-o", str(tmp_path / "out")]) == 2
    message = error(capsys)
    assert words in message
    assert "8 or 16 bits" in message


def test_same_names_do_not_collide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for d in ("a", "b"):
        (tmp_path / d).mkdir()
        Image.fromarray(SCENE).save(tmp_path / d / "x.png")
    Image.fromarray(SCENE).save(tmp_path / "a" / "x.jpg")
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path / "a"), "-o", str(out), "--size", "64x96"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["x_jpg_overlay.png", "x_png_overlay.png"]
    pattern = str(tmp_path / "*" / "x.png")
    assert main(["segment", pattern, "-o", str(out), "--force"]) == 2
    assert "different folders" in error(capsys)


def test_the_same_input_twice_is_one(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-o", str(tmp_path / "out"), "--size", "64x96"]
    assert main(["segment", str(photo), str(photo), str(tmp_path), *options]) == 0
    assert "1 of 1 input(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "missing.png", "-o", "out"], "missing.png: no such file"),
        (["segment", ".", "-o", "out"], "no images or videos"),
        (["segment", "PHOTO", "-o", "out", "--weights", "nothing"], "no checkpoint 'nothing'"),
        (["segment", "PHOTO", "-o", "out", "--weights", "."], "folder|directory"),
        (["segment", "PHOTO", "-o", "out", "--device", "cuda:7"], "cuda:7"),
        (["segment", "PHOTO", "-o", "out", "--device", "tpu"], "tpu"),
        (["segment", "PHOTO", "-o", "out", "--size", "16x64"], "16x64.*at least 32"),
        (["segment", "PHOTO", "-o", "PHOTO", "--force"], "is an input"),
        (["segment", "", "-o", "out"], "input is empty"),
        (["segment", "../empt*", "-o", "out"], "no match"),
        (["segment", "s3://bucket/x.mp4", "-o", "out"], "a bucket is for --cluster"),
        (["segment", "PHOTO", "-o", "x.mp4"], "is an image"),
        (["segment", "PHOTO", "-o", "x.jpg", "--labels"], "expected .png"),
        (["segment", "PHOTO", "-o", "out", "--size", "100000x64"], "at most 32768"),
        (["segment", "PHOTO", "-o", "out", "--device", "meta"], "meta"),
        (["convert", "missing.pth", "x.safetensors"], "missing.pth"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    arguments: list[str],
    words: str,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code = main([str(photo) if a == "PHOTO" else a for a in arguments])
    assert code == 2
    assert re.search(words, error(capsys))
    assert not (tmp_path / "empty" / "out").exists()


@pytest.mark.parametrize("option", [["--size", "64"], ["--opacity", "2"], ["--threads", "0"]])
def test_bad_options_exit_2(photo: Path, option: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["segment", str(photo), "-o", "out", *option])
    assert e.value.code == 2


def test_demo_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path), "--opacity", "0.25"]) == 0
    assert "a street that is drawn" in capsys.readouterr().out
    frame = street_scene()
    assert np.array_equal(read_image(tmp_path / "demo.png"), frame)
    tinted = fastscnn.overlay(frame, fastscnn.load().segment(frame), fastscnn.CAMVID, 0.25)
    assert np.array_equal(read_image(tmp_path / "demo_overlay.png"), tinted)
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "cpu: " in text
    assert "camvid" in text
    assert main(["info", "--plan", "512x1024"]) == 0
    text = capsys.readouterr().out
    assert "argmax_head" in text
    assert "nothing was measured" in text
    assert main(["info", "--plan", "512x1024", "--batch", "3"]) == 0
    model = fastscnn.load(device="cpu")
    assert capsys.readouterr().out == f"{table(model.plan((512, 1024), batch=3))}\n"  # type: ignore[operator]
    assert main(["info", "--plan", "16x64"]) == 2


def test_make_demo_overwrites_only_when_told() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")

    def commands(*options: str) -> str:
        argv = [make, "--no-print-directory", "--dry-run", "demo", "IMAGE=a b.jpg", *options]
        return subprocess.run(
            argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]

    assert commands().endswith('fastscnn segment "a b.jpg" -o out')
    assert commands("FORCE=1").endswith("-o out --force")


def test_convert_takes_shipped_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "camvid", str(tmp_path / "ours.pth")]) == 0
    assert "camvid: fastscnn layout, 11 classes" in capsys.readouterr().out
    assert fastscnn.load(tmp_path / "ours.pth").card == fastscnn.load().card


def test_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    """Ctrl-C: finished pictures stay, none is half-written, the exit code says so."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(200):
        Image.fromarray(SCENE).save(folder / f"{i:03}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastscnn", "segment", str(folder), "-o", str(out)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background ignores SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("[0-9]*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    written = list(out.glob("*_overlay.png"))
    assert 3 <= len(written) < 200
    for path in written:
        assert read_image(path).shape == SCENE.shape
    assert len(list(out.iterdir())) == len(written)


@pytest.mark.parametrize("stub", ["safetensors", "tqdm"], ids=["package", "command line"])
@pytest.mark.parametrize(
    ("python", "as_command"),
    [
        (["-m", "fastscnn", "info"], True),
        (["bin/fastscnn", "info"], True),
        (["-c", "import fastscnn, fastscnn.cli"], False),
    ],
    ids=["-m", "script", "library"],
)
def test_ctrl_c_while_the_command_loads(
    tmp_path: Path, stub: str, python: list[str], as_command: bool
) -> None:
    """The command ends quietly; a program that imports the package sees its own interrupt."""
    (tmp_path / f"{stub}.py").write_text("raise KeyboardInterrupt")
    (tmp_path / "bin").mkdir()
    script = "import sys\nfrom fastscnn.__main__ import main\nsys.exit(main())\n"
    (tmp_path / "bin" / "fastscnn").write_text(script)
    process = subprocess.run(
        [sys.executable, *python],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ("Traceback" in process.stderr) is not as_command
    assert (process.returncode == 130) is as_command


def test_street_photos(data_dir: Path, tmp_path: Path) -> None:
    """Real road photos of another camera than the weights': by the files' own truth, over all of
    them, most pixels are right, and most of the road, the buildings, the sky and the cars."""
    photos = sorted((data_dir / "street" / "images").glob("*_leftImg8bit.png"))
    assert main(["segment", *map(str, photos), "-o", str(tmp_path), "--labels"]) == 0
    ours, theirs = fastscnn.CAMVID.names, fastscnn.CITYSCAPES.names
    found, real = [], []
    for photo in photos:
        truth = f"{photo.stem.removesuffix('_leftImg8bit')}_gtFine_labelTrainIds.png"
        found.append(np.array(Image.open(tmp_path / f"{photo.stem}_labels.png")))
        real.append(np.array(Image.open(data_dir / "street" / "labels" / truth)))
    labels, truths = np.stack(found), np.stack(real)
    pairs = {"Road": "road", "Building": "building", "Sky": "sky", "Car": "car"}
    right = total = 0
    for a, b in pairs.items():
        expected = truths == theirs.index(b)
        hit = (labels[expected] == ours.index(a)).sum()
        right, total = right + hit, total + expected.sum()
        assert hit > 0.5 * expected.sum(), f"{a}: {hit / expected.sum():.2f} of the true pixels"
    assert right > 0.85 * total, f"{right / total:.2f} of the pixels"
