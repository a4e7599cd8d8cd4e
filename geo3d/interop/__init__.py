"""Open3D, trimesh, PyTorch3D, nerfstudio, COLMAP, ROS 2: what geo3d speaks in, in their words, and back.

A module is named after its library, which is imported when it is needed and not before. Lengths stay metres and
colours stay in [0, 1]; axes, pixel centres and orders of rows become the other library's. What it cannot hold is an
:class:`~geo3d.errors.InputError` that names it, unless it is asked to be left out: nothing is dropped silently.
"""
