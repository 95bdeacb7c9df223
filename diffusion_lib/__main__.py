"""`python -m diffusion_lib`: see diffusion_lib.cli."""

from diffusion_lib.cli import main

if __name__ == "__main__":
    main()
