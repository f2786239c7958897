"""The commands of `tenuto`, without a system behind them."""
