"""Original downloads into records: python -m jdepth.prepare NAME --raw DIR [--out data].

Checks the raw folder, writes records with a process pool (stopped and started again, it goes on), and ends with
what the set holds beside what is published about it.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from jdepth import command_line
from jdepth.errors import UserError

USAGE = """
Prepare a data set for training: python -m jdepth.prepare NAME --raw DIR [flags]

  python -m jdepth.prepare --list                                every data set, its task, size, licence, state here
  python -m jdepth.prepare nyu --raw downloads/nyu               all splits to data/nyu
  python -m jdepth.prepare nyu --raw downloads/nyu --limit 100 --out trial --show 8
  python -m jdepth.prepare taskonomy --raw downloads/omnidata --fraction 0.1
  python -m jdepth.prepare nyu --check                           read everything in data/nyu again
  python -m jdepth.prepare nyu --show 8                          a picture of images, targets and augmentation

Exit codes: 0 done; 1 done, but some files could not be used (they are listed); 2 not done."""

# Bad files that are printed, and classes of the histogram; records.json has them all.
SHOWN, BARS = 50, 10


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("raw", None, "folder of the original download, unpacked", flag_values=values)
    flags.DEFINE_string("out", "data", "records go to OUT/NAME; config.data_dir of a run", flag_values=values)
    flags.DEFINE_list("split", [], "only these splits, separated by commas", flag_values=values)
    flags.DEFINE_integer("limit", 0, "only the first so many of each split; 0 = all", lower_bound=0, flag_values=values)
    flags.DEFINE_float("fraction", 1.0, "about this share of the training split, chosen by a hash of the ids",
                       lower_bound=0, upper_bound=1, flag_values=values)  # fmt: skip
    flags.DEFINE_integer("seed", 0, "which share --fraction takes", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("workers", os.cpu_count(), "processes; 0 = this one alone", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("max_bad", 100, "give up after so many files that cannot be used", lower_bound=0,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_boolean("list", False, "print every data set and leave", flag_values=values)
    flags.DEFINE_boolean("check", False, "read all records again and compare", flag_values=values)
    flags.DEFINE_integer("show", 0, "write a picture of so many items of each split", lower_bound=0, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Do what the flags say; the exit code."""
    if values.list:
        command_line.no_arguments(arguments)
        print(listing(Path(values.out)))
        return 0
    if len(arguments) != 1:
        raise UserError("name one data set, such as nyu; python -m jdepth.prepare --list prints all")
    from jdepth.data import sources

    raw_set = sources.raw_set(arguments[0])
    folder = Path(values.out) / raw_set.name
    for split in values.split:
        if split not in raw_set.counts:
            raise UserError(f"--split {split}: {raw_set.title} has {', '.join(raw_set.counts)}")
    code = 0
    if values.raw:
        code = _build(values, raw_set, folder)
    elif not (values.check or values.show):
        from jdepth.data import raw_folder

        raise UserError(f"--raw: give the folder of the original download; {raw_folder.where_from(raw_set)}")
    if values.check:
        code = max(code, check(folder, values.split, values.workers))
    if values.show:
        from jdepth import prepared_sheet

        for path in prepared_sheet.write(folder, raw_set.name, values.show, values.split):
            print(f"wrote {path}")
    return code


def _build(values: flags.FlagValues, raw_set, folder: Path) -> int:
    from tqdm import tqdm

    from jdepth.data import build

    selection = build.Selection(values.limit, values.fraction, values.seed)
    with contextlib.ExitStack() as closing:
        bars = []

        def progress(done: int, of: int) -> None:
            if not bars:  # what an earlier start did is not this one's speed
                bar = tqdm(desc=raw_set.name, unit=" images", smoothing=0.05, total=of, initial=done)
                bars.append(closing.enter_context(bar))
            bars[0].update(done - bars[0].n)

        about = build.build(
            raw_set, Path(values.raw), folder, values.split, selection, values.workers, values.max_bad, progress
        )
    splits = values.split or list(raw_set.counts)
    for split in splits:
        print(summary(raw_set, split, about["splits"][split]))
    bad = [entry for split in splits for entry in about["splits"][split]["bad"]]
    for _, reason in bad[:SHOWN]:
        print(f"not used: {reason}")
    if bad:
        more = f" (the first {SHOWN} above; all in {folder / 'records.json'})" if len(bad) > SHOWN else ""
        print(f"{len(bad)} files could not be used{more}; mend them and start again, only their shards are made anew")
    return 1 if bad else 0


def summary(raw_set, split: str, entry: Mapping[str, Any]) -> str:
    """What a split holds, and in further lines what is unexpected about it."""
    numbers, selection = entry["statistics"], entry["selection"]
    size = sum(shard["bytes"] for shard in entry["shards"])
    parts = [f"{entry['count']:,} images", f"{size / 1e9:.2f} GB in {len(entry['shards'])} shards", _sizes(numbers)]
    warnings = []
    if raw_set.kind == "depth":
        if numbers["nearest"] is not None:
            nearest, farthest = numbers["nearest"] / raw_set.per_metre, numbers["farthest"] / raw_set.per_metre
            parts.append(f"depth {nearest:.3g} to {farthest:.4g} m")
            if raw_set.farthest and farthest > raw_set.farthest:
                warnings.append(f"depth up to {farthest:.4g} m, at most {raw_set.farthest:g} m are usual: wrong scale?")
    else:
        parts.append(f"{sum(count > 0 for count in numbers['classes'])} of {len(raw_set.classes)} classes seen")
    parts.append(f"{numbers['valid'] / max(numbers['pixels'], 1):.1%} of pixels valid")
    parts.append(f"checksum {numbers['checksum'][:12]}")
    published, whole = raw_set.counts[split], not _selected(selection, split)
    if whole and entry["count"] != published and not raw_set.approximate:
        warnings.append(f"{entry['count']:,} images, published are {published:,}")
    other = sum(count for size, count in numbers["sizes"].items() if size != _shown(raw_set.size))
    if raw_set.size and other:
        warnings.append(f"{other:,} images are not {_shown(raw_set.size)}, as this set's are: cropped or resized copies?")
    lines = [f"{raw_set.name} {split}: {', '.join(parts)}"]
    if raw_set.kind == "label":
        lines += _histogram(raw_set.classes, numbers)
    return "\n".join([*lines, *(f"  warning: {line}" for line in warnings)])


def _selected(selection: Mapping[str, Any], split: str) -> str:
    """Which part of a split was prepared, in words; "" for all of it."""
    parts = [f"limit {selection['limit']}"] if selection["limit"] else []
    if selection["fraction"] < 1 and split == "train":
        parts.append(f"{selection['fraction']:.3g} of it")
    return ", ".join(parts)


def _shown(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def _sizes(numbers: Mapping[str, Any]) -> str:
    sizes = numbers["sizes"]
    return next(iter(sizes)) if len(sizes) == 1 else "of varying size"


def _histogram(names, numbers: Mapping[str, Any]) -> list[str]:
    """A bar for each of the most frequent classes."""
    pixels, valid = numbers["classes"], max(numbers["valid"], 1)
    order = sorted(range(len(pixels)), key=lambda i: -pixels[i])[:BARS]
    most = max(pixels[order[0]], 1)
    return [
        f"  {names[i][:24]:24} {pixels[i] / valid:7.2%} {'#' * round(30 * pixels[i] / most)}" for i in order if pixels[i]
    ]


def check(folder: Path, splits: list[str], workers: int) -> int:
    """Read every record again; print what differs from what was written; the exit code."""
    from tqdm import tqdm

    from jdepth.data import records, verify

    about = records.read_about(folder)
    if about is None:
        raise UserError(f"{folder}: not prepared yet; give --raw to prepare it")
    faults = []
    for split in splits or about["splits"]:
        if split not in about["splits"]:
            raise UserError(f"--split {split}: not prepared in {folder}; there are {', '.join(about['splits'])}")
        count = about["splits"][split]["count"]
        with tqdm(total=count, desc=f"{about['name']} {split}", unit=" images") as bar:
            found = verify.verify(folder, split, workers, lambda done, bar=bar: bar.update(done - bar.n))
        faults += found
        if not found:
            print(f"{about['name']} {split}: {count:,} records are as they were written")
    for fault in faults[:SHOWN]:
        print(f"damaged: {fault}")
    if faults:
        print(f"{len(faults)} faults; delete {folder} and prepare the data set again")
    return 1 if faults else 0


def listing(data_dir: Path) -> str:
    """A table of every data set: task, images, download, state in `data_dir`, terms."""
    from jdepth.data import sources

    rows = [("name", "task", "images", "download", f"in {data_dir}", "data set and terms")]
    for name in sources.RAW_SETS:
        raw_set = sources.raw_set(name)
        held = _held(data_dir / name)
        task = "depth" if raw_set.kind == "depth" else f"{len(raw_set.classes)} classes"
        about = "about " if raw_set.approximate else ""
        images = about + ", ".join(f"{split} {count:,}" for split, count in raw_set.counts.items())
        rows.append((name, task, images, raw_set.download, held, f"{raw_set.title}: {raw_set.terms}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )


def _held(folder: Path) -> str:
    """What of a data set is prepared in its folder."""
    from jdepth.data import records

    try:
        about = records.read_about(folder)
    except UserError:
        return "damaged"
    if about is None:
        return "begun" if next(folder.glob("*.array_record-*"), None) else "-"
    parts = []
    for split, entry in about["splits"].items():
        chosen = _selected(entry["selection"], split)
        parts.append(f"{split} {entry['count']:,}" + (f" ({chosen})" if chosen else ""))
    return ", ".join(parts)


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
