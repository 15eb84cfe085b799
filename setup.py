"""The one compiled part: the call into a compiled model. Without a C compiler ctypes does it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "redline.runtime._native_call",
            ["src/redline/runtime/_native_call.c"],
            extra_compile_args=["-O2"],
            optional=True,
        )
    ]
)
