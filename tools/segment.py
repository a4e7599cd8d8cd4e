"""Run a trained Swin3D over a scene: `python tools/segment.py --checkpoint runs/swin3d-001 --scene scans/scene0000`."""

from __future__ import annotations

from geo3d.cli import command_line

PROGRAM = "segment.py"


def main(args: list[str]) -> None:
    """Read the command line, segment one scene, say what was found."""
    from geo3d.cli.segment import SegmentScene, segment_scene

    print(segment_scene(command_line.parse(SegmentScene, args, PROGRAM)))


if __name__ == "__main__":
    command_line.run(main)
