"""Exact conversion of a column's values to its declared dtype: what does not fit is an error."""

from __future__ import annotations

import datetime as dt
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    Mask = npt.NDArray[np.bool_]

__all__ = ["BadValueError", "convert", "is_converted", "utf8"]

_INT64 = range(-(2**63), 2**63)


class BadValueError(ValueError):
    """The value in row `row` is not of the dtype; `reason` says why."""

    def __init__(self, row: int, value: object, reason: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        super().__init__(f"row {row} holds {shown} ({type(value).__name__}): {reason}")
        self.row = row


def utf8(text: str) -> str:
    """`text` as a plain `str` that UTF-8 can hold: lone surrogates become backslash escapes.

    Python makes lone surrogates out of file names that are not UTF-8; Parquet cannot hold them.
    """
    text = str.__str__(text)
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def convert(series: pd.Series, dtype: str, nullable: bool) -> pd.Series:
    """Return a new series in the pandas dtype of `dtype` (a key of `vbkit.tables.DTYPES`).

    Whole floats become integers and integers become floats, where that is exact; nothing else
    changes type: no number becomes text, no text a number, no naive time gets a time zone.

    Raises:
        BadValueError: with the first row whose value does not fit, or is NULL and must not be.
    """
    import numpy as np

    null = np.asarray(series.isna(), dtype=bool)
    if null.any() and not nullable:
        row = int(null.argmax())
        raise BadValueError(row, series.iloc[row], "NULL, but the column is not nullable")
    if is_converted(series.dtype, dtype, nullable):
        return series.reset_index(drop=True).copy()
    return _CONVERT[dtype](series, null, nullable)


def is_converted(found: Any, dtype: str, nullable: bool) -> bool:
    """Whether a series of dtype `found` certainly is as `convert` would make it."""
    name = str(found)
    if dtype == "string":
        arrow = getattr(found, "storage", "") == "pyarrow"  # which holds UTF-8 only
        return arrow and name == "string"
    if dtype == "int64":
        return name == ("Int64" if nullable else "int64")
    if dtype == "bool":
        return name == ("boolean" if nullable else "bool")
    return name == {"float64": "float64", "timestamp": "datetime64[us, UTC]"}[dtype]


def _elements(
    series: pd.Series, null: Mask, one: Callable[[int, Any], Any], missing: Any
) -> list[Any]:
    values = series.astype(object).tolist()
    return [
        missing if is_null else one(row, value)
        for row, (value, is_null) in enumerate(zip(values, null.tolist(), strict=True))
    ]


def _plain_kind(series: pd.Series) -> str:
    """Numpy's kind letter where the values are a plain number column, else the empty string."""
    import numpy as np

    dtype: Any = series.dtype
    dtype = getattr(dtype, "numpy_dtype", dtype)  # of pandas' nullable dtypes
    if isinstance(dtype, np.dtype) and dtype.kind in "iuf" and dtype.itemsize <= 8:
        return dtype.kind
    return ""


def _string(series: pd.Series, null: Mask, nullable: bool) -> pd.Series:
    import pandas as pd

    def one(row: int, value: Any) -> str:
        if not isinstance(value, str):
            raise BadValueError(row, value, "not a string")
        return utf8(value)

    values = _elements(series, null, one, None)
    return pd.Series(pd.array(values, dtype="string"))


def _float64(series: pd.Series, null: Mask, nullable: bool) -> pd.Series:
    import numpy as np
    import pandas as pd

    if _plain_kind(series) == "f":
        return pd.Series(series.to_numpy(dtype=np.float64, na_value=np.nan, copy=True))

    def one(row: int, value: Any) -> float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise BadValueError(row, value, "not a number")
        number: Any = value
        try:
            converted = float(number)
        except OverflowError:
            converted = float("nan")
        if converted != number:
            raise BadValueError(row, value, "a float64 cannot hold it exactly")
        return converted

    values = _elements(series, null, one, float("nan"))
    return pd.Series(np.array(values, dtype=np.float64))


def _int64(series: pd.Series, null: Mask, nullable: bool) -> pd.Series:
    import numpy as np
    import pandas as pd

    def one(row: int, value: Any) -> int:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise BadValueError(row, value, "not a whole number")
        number: Any = value
        if not isinstance(value, numbers.Integral) and not np.isfinite(float(number)):
            raise BadValueError(row, value, "not a whole number")
        whole = int(number)
        if whole != number:
            raise BadValueError(row, value, "not a whole number")
        if whole not in _INT64:
            raise BadValueError(row, value, "an int64 cannot hold it")
        return whole

    if _plain_kind(series) == "i":
        values = series.to_numpy(dtype=np.int64, na_value=0, copy=True)
    else:
        values = np.array(_elements(series, null, one, 0), dtype=np.int64)
    if nullable:
        return pd.Series(pd.arrays.IntegerArray(values, null.copy()))
    return pd.Series(values)


def _bool(series: pd.Series, null: Mask, nullable: bool) -> pd.Series:
    import numpy as np
    import pandas as pd

    def one(row: int, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise BadValueError(row, value, "not True or False")
        return bool(value)

    values = np.array(_elements(series, null, one, False), dtype=bool)
    if nullable:
        return pd.Series(pd.arrays.BooleanArray(values, null.copy()))
    return pd.Series(values)


def _timestamp(series: pd.Series, null: Mask, nullable: bool) -> pd.Series:
    import numpy as np
    import pandas as pd

    def one(row: int, value: Any) -> Any:
        if not isinstance(value, dt.datetime):
            raise BadValueError(row, value, "not a datetime")
        if value.tzinfo is None:
            raise BadValueError(row, value, "a datetime without a time zone; make it UTC")
        try:
            return pd.Timestamp(value).tz_convert("UTC").as_unit("us").to_datetime64()
        except (OverflowError, ValueError) as error:
            raise BadValueError(row, value, f"not a UTC time: {error}") from error

    values = _elements(series, null, one, np.datetime64("NaT", "us"))
    naive = np.array(values, dtype="datetime64[us]")
    return pd.Series(naive).dt.tz_localize("UTC")


_CONVERT: dict[str, Callable[[pd.Series, Mask, bool], pd.Series]] = {
    "string": _string,
    "float64": _float64,
    "int64": _int64,
    "bool": _bool,
    "timestamp": _timestamp,
}
