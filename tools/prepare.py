"""`geo3d prepare` from a checkout: make synthetic scenes, find view pairs."""

from geo3d.cli import command_line, prepare

if __name__ == "__main__":
    command_line.run(prepare.main, "prepare.py")
