import sys


def main() -> int:
    try:
        from .run import main

        return main()
    except KeyboardInterrupt:
        if "--worker" not in sys.argv:  # a measuring process leaves the message to the one that started it
            print("\nsnnfast bench: interrupted", file=sys.stderr)
        return 130


sys.exit(main())
