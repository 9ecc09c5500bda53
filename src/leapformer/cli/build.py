"""The native kernel, made ahead of its first use: `leapformer build`."""

from dataclasses import dataclass


@dataclass
class Build:
    """Compile the CPU kernel of the attention, once; backend "auto" takes it from then on."""

    def __call__(self) -> None:
        from ..ops.build import build
        from ..ops.native import kernel

        try:
            build()
            path = kernel().path
        except RuntimeError as error:
            raise OSError(error) from None
        print(f'{path}\nbackend="auto" takes it on this CPU')
