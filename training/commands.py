"""Commands that training adds to `narrows`: name -> (module:function, one line for the list). Imports nothing."""

COMMANDS = {
    "train": ("training.cli:train", "Train, calibrate and export a model; write a bundle, report and card."),
    "tune": ("training.cli:tune", "Search settings of training over blocks of time."),
    "evaluate": ("training.cli:evaluate", "Score files by a bundle, and measure honestly."),
    "report": ("training.cli:report", "Draw a bundle's report again, on other rows."),
}
