"""Write what instruments say of recorded answers to requests for advice: data/advice/scores.csv.

Words, and each reader's activations and own word. A reader goes over 1 200 answers in some ten
minutes of one core; another one, such as qwen2.5-coder-0.5b, is named with `--readers` and takes
longer the larger it is. Finished readers are kept in `--work`. Models are fetched the first time;
one that cannot be had is named and left out, and the best of what is there is said.
"""
import argparse
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]/"data"/"advice"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--work", type=Path, default=Path("runs/advice-scores"),
                        help="folder of finished readers")
    parser.add_argument("--out", type=Path, default=DATA/"scores.csv", help="file to write")
    parser.add_argument("--readers", nargs="*", help="models that read [SmolLM2 and Gemma]")
    args = parser.parse_args()
    print("\n".join(written(args.readers, args.work, args.out)))


def written(readers: list[str] | None, work: Path, out: Path) -> list[str]:
    "Write scores of all readers that can be had; sentences on each, those left out, the best."
    import pandas as pd
    from em_repro.advice_judges import JUDGE_READERS, best_judge, judge_scores
    work.mkdir(parents=True, exist_ok=True)
    parts, lost, said = [], {}, []
    for name in readers or JUDGE_READERS:
        path = work/f"{name.replace('/', '--')}.csv"
        table = pd.read_csv(path) if path.is_file() else \
            judge_scores([name], missing=lost.__setitem__)
        if name not in lost: table.to_csv(path, index=False)
        parts.append(table)
        said.append(f"{name}: left out, {lost[name]}" if name in lost else
                    f"{name}: {len(table)} scores")
    table = pd.concat(parts).drop_duplicates(["id", "judge"])
    table.round(4).to_csv(out, index=False, lineterminator="\n")
    best = best_judge(table, readers or JUDGE_READERS)[1]
    return [*said, f"{len(table)} scores in {out}", best]


if __name__ == "__main__": main()
