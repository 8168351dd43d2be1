import sys

from softless.cli.main import main

sys.exit(main())
