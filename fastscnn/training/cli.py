"""`fastscnn train` and `fastscnn evaluate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastscnn.checkpoints.formats import write_atomically
from fastscnn.training.recipe import Recipe


def add_train_parser(subparsers: Any) -> None:
    """Adds `train`; its `run(args)` returns the exit code."""
    p = subparsers.add_parser(
        "train",
        help="train on Cityscapes, CamVid, own masks or folders of images by class",
        description="Trains in a folder; the same command continues a run that was stopped. With "
        "many GPUs: torchrun --nproc-per-node N -m fastscnn train ...",
    )
    p.add_argument("data", type=Path, metavar="DATA", help="folder of the data set")
    p.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    p.add_argument(
        "--recipe",
        help=f"{', '.join(Recipe.names())}, or a TOML file (default: the one for DATA)",
    )
    p.add_argument("--init", metavar="WEIGHTS", help="start from this checkpoint's weights")
    p.add_argument("--train-split", default="train", help="folder to train on (%(default)s)")
    p.add_argument("--val-split", default="val", help="folder to validate on (%(default)s)")
    p.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    p.add_argument(
        "--workers", type=int, default=2, help="processes that prepare images (%(default)s)"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    p.add_argument("--compile", action="store_true", help="train under torch.compile")
    p.add_argument(
        "--save-every", type=int, default=500, help="steps between savings (%(default)s)"
    )
    p.add_argument(
        "--overlays-every", type=int, default=10,
        help="epochs between pictures of validation images; 0 draws none (%(default)s)",
    )  # fmt: skip
    p.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    p.add_argument("--plot", action="store_true", help="draw curves.png after every validation")
    group = p.add_argument_group("values of the recipe", "each overrides the recipe's own")
    for f in fields(Recipe):
        flag = "--" + f.name.replace("_", "-")
        if isinstance(f.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            shown = "x".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
            group.add_argument(
                flag, metavar="VALUE", help=f"paper: {shown}" if shown != "" else None
            )
    p.set_defaults(run=_train)


def add_evaluate_parser(subparsers: Any) -> None:
    """Adds `evaluate`; its `run(args)` returns the exit code."""
    p = subparsers.add_parser(
        "evaluate",
        help="count mIoU on labelled data, draw plots",
        description="Class and category mIoU with a table per class. --curves draws the learning "
        "curves of training runs instead.",
    )
    p.add_argument("data", type=Path, nargs="?", metavar="DATA", help="folder of the data set")
    p.add_argument(
        "--weights", default="camvid", help="checkpoint file or shipped name (%(default)s)"
    )
    p.add_argument("--split", default="val", help="one, or several as train,val (%(default)s)")
    p.add_argument("--sequences", metavar="A,B", help="only these sequences (see train --hold-out)")
    p.add_argument(
        "--sequence", default=Recipe.sequence, metavar="REGEX",
        help="what names a sequence at the beginning of an image's name (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--gamma", type=float, nargs="+", default=[1.0], metavar="G",
        help="raise the images' values (0 to 1) to these powers: 0.7 1 1.3 tells how the weights "
        "bear other light",
    )  # fmt: skip
    p.add_argument("--size", help="network input HxW (default: the weights' own)")
    p.add_argument(
        "--input-scale", type=float, default=1.0, metavar="S",
        help="shrink the network's input, as 0.5 or 0.25 (Table 7); labels stay at full size",
    )  # fmt: skip
    p.add_argument("--zero-skip", action="store_true", help="without the skip connection (3.2)")
    p.add_argument("--limit", type=int, default=0, help="use only that many images")
    p.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    p.add_argument("--workers", type=int, default=2, help="threads that read images (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    p.add_argument("--plot", type=Path, metavar="DIR", help="write confusion matrix and class bars")
    p.add_argument(
        "--curves",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of training runs; needs --plot",
    )
    p.set_defaults(run=_evaluate)


def _train(args: argparse.Namespace) -> int:
    from fastscnn.training import distributed
    from fastscnn.training.data import image_folders, open_data
    from fastscnn.training.train import Options, Trainer

    values = {f.name: getattr(args, f.name) for f in fields(Recipe)}
    changes = {k: _number(k, v) for k, v in values.items() if v is not None}
    name = args.recipe or _default_recipe(args.data)
    recipe = Recipe.read(name, changes)
    opened = image_folders if recipe.task == "classify" else open_data
    train: Any = opened(args.data, args.train_split)
    val = opened(args.data, args.val_split)
    if recipe.extra_split:
        train = train.joined(open_data(args.data, recipe.extra_split))
    if recipe.hold_out:
        train, val = train.joined(val).divided(recipe.hold_out.split(","), recipe.sequence)
        if not len(train):
            raise ValueError(f"recipe hold_out={recipe.hold_out!r} leaves no image to train on")
    options = Options(
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        workers=args.workers,
        threads=args.threads,
        compile=args.compile,
        save_every=max(1, args.save_every),
        overlays_every=args.overlays_every,
        tensorboard=args.tensorboard,
        plot=args.plot,
    )
    try:
        distributed.start(options.device)
        if distributed.rank() == 0 and not args.recipe:
            print(f"recipe   {name}, as --recipe names no other")
        Trainer(recipe, train, val, args.out, options=options, init=args.init).run()
    finally:
        distributed.stop()
    return 0


def _default_recipe(data: Path) -> str:
    if (data / "leftImg8bit").is_dir():
        return "cityscapes"
    return "own-masks" if (data / "classes.json").is_file() else "camvid"


def _number(name: str, value: Any) -> Any:
    """A command-line text as TOML would have given it."""
    default = getattr(Recipe, name)
    if isinstance(value, str) and isinstance(default, (int, float)):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value


def _evaluate(args: argparse.Namespace) -> int:
    if args.curves:
        return _curves(args)
    if args.data is None:
        raise ValueError("evaluate needs DATA, the folder of the data set (or --curves RUN ...)")
    from fastscnn.load import load
    from fastscnn.training.evaluate import evaluate
    from fastscnn.training.loading import ahead
    from fastscnn.training.photometric import gamma_table

    if args.plot:
        from fastscnn.training.plots import require_matplotlib

        require_matplotlib()
    if not 0 < args.input_scale <= 4:
        raise ValueError(f"--input-scale {args.input_scale}: expected above 0 and at most 4")
    if not all(0 < g <= 10 for g in args.gamma):
        raise ValueError(f"--gamma {args.gamma}: expected numbers above 0 and at most 10")
    data = _evaluated_data(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.weights, device=args.device)
    if model.num_classes != len(data.classes):
        raise ValueError(
            f"{args.weights} has {model.num_classes} classes, but {data.name} has "
            f"{len(data.classes)}"
        )
    model.feature_fusion.zero_skip = args.zero_skip
    given = _size(args.size) if args.size else None
    used: set[tuple[int, int]] = set()

    def predict(frame: torch.Tensor, gamma: float) -> torch.Tensor:
        frame = frame if gamma == 1 else gamma_table(gamma)[frame.long()]
        size = model.input_size((frame.shape[0], frame.shape[1]), given)
        if args.input_scale != 1:
            size = (round(size[0] * args.input_scale), round(size[1] * args.input_scale))
        used.add(size)
        labels: torch.Tensor = model.segment(frame, size=size)
        return labels

    results = {}
    for gamma in args.gamma:
        pairs = ahead(data.__getitem__, range(len(data)), args.workers)
        bar = tqdm(pairs, f"evaluate, gamma {gamma:g}", len(data), leave=False, disable=None)
        results[gamma] = evaluate(partial(predict, gamma=gamma), bar, data.classes)
    result = results.get(1.0, results[args.gamma[0]])
    sizes = sorted(f"{h}x{w}" for h, w in used)
    print(f"{args.weights} on {data.name}/{args.split}: {len(data)} images, network input "
          f"{', '.join(sizes[:3])}{' ...' if len(sizes) > 3 else ''}")  # fmt: skip
    print(result.table())
    if args.gamma != [1.0]:
        listed = (f"{g:g}: {100 * r.miou:.2f} %" for g, r in results.items())
        print(f"class mIoU by gamma  {', '.join(listed)}")
    if args.json:
        about = {
            "weights": str(args.weights), "data": data.name, "split": args.split,
            "images": len(data), "input_scale": args.input_scale, "input_sizes": sizes,
            "zero_skip": args.zero_skip, "sequences": args.sequences,
            "miou_by_gamma": {f"{g:g}": round(r.miou, 5) for g, r in results.items()},
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**about, **result.to_dict()}, indent=1) + "\n"
        write_atomically(args.json, lambda temporary: temporary.write_text(text, "utf-8"))
    if args.plot:
        from fastscnn.training.plots import plot_result

        for path in plot_result(result, args.plot):
            print(f"written {path}")
    return 0


def _evaluated_data(args: argparse.Namespace) -> Any:
    from fastscnn.training.data import open_data

    first, *more = args.split.split(",")
    data = open_data(args.data, first)
    for split in more:
        data = data.joined(open_data(args.data, split))
    if args.sequences:
        data = data.divided(args.sequences.split(","), args.sequence)[1]
    return data.limited(args.limit)


def _curves(args: argparse.Namespace) -> int:
    from fastscnn.training.plots import plot_curves

    if args.plot is None:
        raise ValueError("--curves needs --plot DIR, the folder for the picture")
    path = args.plot / "curves.png"
    plot_curves(args.curves, path)
    print(f"written {path}")
    return 0


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise ValueError(f"--size {text!r}: expected HEIGHTxWIDTH, as 512x1024")
    return int(parts[0]), int(parts[1])
