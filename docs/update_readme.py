"""Runs the README's blocks of commands that show output, and updates this output: `make readme`."""

from runs.tutorial import BLOCKS, PAGES, ROOT, run_block, same_lines


def main() -> None:
    page = ROOT / "README.md"
    text = PAGES[page]
    for block in BLOCKS:
        if block.output:
            print(block.commands, flush=True)
            lines = same_lines(block.output, run_block(block.commands, ROOT, OMP_NUM_THREADS=""))
            text = text.replace(block.output, "\n".join(lines) + "\n")
            page.write_text(text)


if __name__ == "__main__":
    main()
