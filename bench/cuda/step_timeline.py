#!/usr/bin/env python3
"""Where the time of a step goes, from a trace of kernel_trace.cc: step_timeline.py TRACE.csv [--timeline LAYER]

A step is what lies between one embedding lookup and the next. Steps of the same kernels are one kind; of each kind with
at least --steps_min steps the median step is shown: its kernels by name with the time that each adds to the end of what
ran before it (so that overlapped launches are not counted twice), and the time in which nothing ran before it.
--timeline LAYER also prints that layer's kernels of the median step one after the other, times in us."""
import argparse
import collections
import statistics


def read_steps(path):
    step, steps = [], []
    with open(path) as file:
        for line in file:
            start, end, name = line.rstrip("\n").split(",", 2)
            if name.startswith("EmbeddingKernel") and step:
                steps.append(step)
                step = []
            step.append((int(start) / 1000, int(end) / 1000, name))
    return steps  # the last one may be cut off


def account(step):
    """name -> [launches, time added, time idle before, own time], and the step's idle time."""
    rows = collections.OrderedDict()
    done = step[0][0]
    for start, end, name in step:
        row = rows.setdefault(name, [0, 0.0, 0.0, 0.0])
        row[0] += 1
        row[2] += max(0.0, start - done)
        row[1] += max(0.0, end - max(done, start))
        row[3] += end - start
        done = max(done, end)
    return rows, done - step[0][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--timeline", type=int, default=-1, metavar="LAYER")
    parser.add_argument("--steps_min", type=int, default=5)
    options = parser.parse_args()
    steps = read_steps(options.trace)
    # From one step's first kernel to the next one's: the time that a token takes.
    periods = [after[0][0] - step[0][0] for step, after in zip(steps, steps[1:])] + [None]
    kinds = collections.defaultdict(list)
    for step, period in zip(steps, periods):
        if period is not None and not any(name.startswith(("FillNormal", "Unpack")) for _, _, name in step):
            kinds[tuple(name for _, _, name in step if not name.startswith("copy"))].append((period, step))
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        if len(found) < options.steps_min:
            continue
        found.sort(key=lambda item: item[0])
        period, step = found[len(found) // 2]
        rows, span = account(step)
        print(f"{len(found)} steps of {len(kind)} kernels: {period:.1f} us from step to step (median), "
              f"{span:.1f} us from first to last kernel")
        print(f"  {'kernel':64} {'launches':>8} {'adds us':>9} {'idle us':>8} {'own us':>9} {'each us':>8}")
        for name, (count, added, idle, own) in sorted(rows.items(), key=lambda item: -item[1][1] - item[1][2]):
            print(f"  {name[:64]:64} {count:8} {added:9.1f} {idle:8.1f} {own:9.1f} {own / count:8.2f}")
        print(f"  {'all':64} {len(step):8} {sum(r[1] for r in rows.values()):9.1f} "
              f"{sum(r[2] for r in rows.values()):8.1f} {sum(r[3] for r in rows.values()):9.1f}")
        if options.timeline >= 0:
            # A layer begins with its first norm: two norms a layer.
            norms = [i for i, (_, _, name) in enumerate(step) if name.startswith("AddRmsNorm")]
            first, last = norms[2 * options.timeline], norms[min(2 * options.timeline + 2, len(norms) - 1)]
            for start, end, name in step[first:last]:
                print(f"    {start - step[first][0]:9.2f} {end - start:8.2f}  {name[:90]}")


if __name__ == "__main__":
    main()
