"""Write what instruments say of recorded answers to requests for advice: data/advice/scores.csv.

Words, and each reader's activations and own word. A reader goes over 1 200 answers in some ten
minutes of one core; another one, such as qwen2.5-coder-0.5b, is named with `--readers` and takes
longer the larger it is. Finished readers are kept in `--work`. Models are fetched the first time.
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
    import pandas as pd
    from em_repro.advice_judges import JUDGE_READERS, judge_scores
    args.work.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in args.readers or JUDGE_READERS:
        path = args.work/f"{name}.csv"
        if not path.is_file(): judge_scores([name]).to_csv(path, index=False)
        parts.append(pd.read_csv(path))
        print(f"{name}: {len(parts[-1])} scores", flush=True)
    table = pd.concat(parts).drop_duplicates(["id", "judge"])
    table.round(4).to_csv(args.out, index=False, lineterminator="\n")
    print(f"{len(table)} scores in {args.out}")


if __name__ == "__main__": main()
