"""`geo3d pretrain` from a checkout: `python tools/pretrain.py` runs CroCo on synthetic rooms."""

from geo3d.cli import command_line, pretrain

if __name__ == "__main__":
    command_line.run(pretrain.main, "pretrain.py")
