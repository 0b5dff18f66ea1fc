"""Named tuples of arrays that index, slice and assign as one array: the structure of all data in rlsurreal.

Every package moves data in these trees: leaves are numpy arrays, torch tensors or ``None`` (a placeholder: the field
does not exist in this run), inner nodes are ``NamedArrayTuple``.  This module imports neither numpy nor torch, so
environment workers stay light; `rlsurreal.utils.torch_tree` makes the classes known to PyTorch's pytrees.
"""

from __future__ import annotations

import collections
import inspect
import keyword
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from typing_extensions import Self, dataclass_transform

Tree = Any  # a leaf, None, or a NamedArrayTuple of Trees

_INDEX_ERRORS = (IndexError, TypeError, ValueError, KeyError, RuntimeError)  # numpy's and torch's
_RESERVED = frozenset({"count", "index", "items"})
_DYNAMIC: dict[tuple[str, tuple[str, ...]], type[NamedArrayTuple]] = {}
_ON_NEW_CLASS: list[Callable[[type], None]] = []


def is_field_name(name: str) -> bool:
    """Whether a structure can have a field of this name."""
    return name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name) and name not in _RESERVED


class _StructureType(type):
    """Turns a class's annotations into its fields."""

    def __new__(mcs, typename: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _StructureType:
        namespace.setdefault("__slots__", ())  # instances are bare tuples
        cls = super().__new__(mcs, typename, bases, namespace)
        if bases == (tuple,):  # NamedArrayTuple itself
            return cls
        own = tuple(inspect.get_annotations(cls))
        inherited = tuple(name for base in bases for name in getattr(base, "_fields", ()) if name not in own)
        fields = inherited + own
        for name in fields:
            if not is_field_name(name):
                raise ValueError(
                    f"{typename}: {name!r} cannot be a field name; choose an identifier that does not start "
                    f"with '_', is no keyword and none of {sorted(_RESERVED)}"
                )
        defaults = {name: value for base in bases for name, value in getattr(base, "_defaults", {}).items()}
        defaults |= {name: namespace[name] for name in own if name in namespace}
        # The C accessors of collections.namedtuple: attribute access must not cost a Python call per step.
        # The class that they come from must be held meanwhile, or the garbage collector may empty it.
        template = collections.namedtuple("template", fields)  # type: ignore[misc]
        for name in fields:
            setattr(cls, name, template.__dict__[name])
        cls._fields, cls._defaults = fields, defaults  # type: ignore[attr-defined]
        for callback in _ON_NEW_CLASS:
            callback(cls)
        return cls


@dataclass_transform(eq_default=False, frozen_default=True)
class NamedArrayTuple(tuple, metaclass=_StructureType):
    """Base class of the structures.  Declare one by its annotations, or make one at run time with `namedarraytuple`.

    >>> class Pair(NamedArrayTuple):
    ...     left: Any
    ...     right: Any = None

    ``pair[i]`` indexes every field and gives a ``Pair``; ``pair[i] = other`` writes field by field when ``other`` has
    the same fields, and otherwise writes the one value into every field.  ``None`` fields are placeholders: they stay
    ``None`` when read and are skipped when written.  Iteration, ``len`` and unpacking go over the fields;
    ``"left" in pair`` asks for a field's name.  Errors name the field, dotted from the root.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Values by position or by name; TypeError, as for a call, if one is missing, unknown or given twice."""
        if len(args) > len(cls._fields):
            raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields {cls._fields}, got {len(args)} values")
        if not kwargs and len(args) == len(cls._fields):
            return tuple.__new__(cls, args)
        values = dict(zip(cls._fields, args))
        for name, value in kwargs.items():
            if name not in cls._fields or name in values:
                problem = "given twice" if name in values else f"not a field; the fields are {cls._fields}"
                raise TypeError(f"{cls.__name__}.{name}: {problem}")
            values[name] = value
        missing = [n for n in cls._fields if n not in values and n not in cls._defaults]
        if missing:
            raise TypeError(f"{cls.__name__}: missing {', '.join(missing)}")
        return tuple.__new__(cls, [values[n] if n in values else cls._defaults[n] for n in cls._fields])

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Self:
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields {cls._fields}, got {len(made)} values")
        return made

    # There is no `_asdict`: a class that had it would pass for a collections.namedtuple with PyTorch's pytrees, which
    # index those like any tuple.  `dict(x.items())` does it.
    def _replace(self, **changes: Any) -> Self:
        return type(self)(**{**dict(self.items()), **changes})

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of field name and value."""
        return zip(self._fields, self)

    def __getitem__(self, where: Any) -> Self:
        out = []
        for name, value in zip(self._fields, self):
            try:
                out.append(None if value is None else value[where])
            except _INDEX_ERRORS as error:
                raise _named(error, name) from error
        return tuple.__new__(type(self), out)

    def __setitem__(self, where: Any, value: Any) -> None:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            if value._fields != self._fields:
                raise TypeError(
                    f"cannot write {type(value).__name__}{value._fields} into "
                    f"{type(self).__name__}{self._fields}: the fields differ"
                )
            sources: Iterable[Any] = value
        else:
            sources = [None if own is None else value for own in self]
        for name, own, new in zip(self._fields, self, sources):
            try:
                if own is not None and new is not None:
                    if isinstance(new, NamedArrayTuple) and not isinstance(own, NamedArrayTuple):
                        raise TypeError(f"the destination is one array, the source is {_describe(new)}")
                    own[where] = new
                elif own is not None or new is not None:
                    empty, full = ("destination", "source") if own is None else ("source", "destination")
                    raise TypeError(f"the {empty} is a placeholder (None), the {full} is not")
            except _INDEX_ERRORS as error:
                raise _named(error, name) from error

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __eq__(self, other: object) -> bool:  # arrays have no single truth value: compare leaf by leaf instead
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(self)
        if _DYNAMIC.get((type(self).__name__, self._fields)) is type(self):
            return _rebuild, (type(self).__name__, self._fields, values)
        return type(self)._make, (values,)


def namedarraytuple(typename: str, fields: Iterable[str] | str) -> type[NamedArrayTuple]:
    """The class of structures named ``typename`` with ``fields``; asked again, the same class comes back.

    Classes made here pickle from and into any process, wherever they were made: name and fields travel with the data.
    """
    names = tuple(fields.replace(",", " ").split() if isinstance(fields, str) else fields)
    if len(set(names)) != len(names):
        raise ValueError(f"{typename}: field names repeat in {names}")
    if (typename, names) not in _DYNAMIC:
        annotations = dict.fromkeys(names, Any)
        namespace = {"__slots__": (), "__annotations__": annotations}
        _DYNAMIC[typename, names] = type(typename, (NamedArrayTuple,), namespace)
    return _DYNAMIC[typename, names]


def _rebuild(typename: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> NamedArrayTuple:
    return namedarraytuple(typename, fields)._make(values)


def _named(error: Exception, field: str) -> Exception:
    """The same error with the field's name in front, dotted through the nesting."""
    path = getattr(error, "_field_path", ())
    text = getattr(error, "_field_text", str(error))
    kind = type(error) if type(error) in (IndexError, TypeError, ValueError, RuntimeError) else ValueError
    named = kind(f"field {'.'.join((field, *path))!r}: {text}")
    vars(named).update(_field_path=(field, *path), _field_text=text)
    return named


def on_new_class(callback: Callable[[type], None]) -> None:
    """Call ``callback`` with every class there is and every class to come (PyTorch registers pytree nodes by class)."""
    _ON_NEW_CLASS.append(callback)
    pending = list(NamedArrayTuple.__subclasses__())
    while pending:
        cls = pending.pop()
        callback(cls)
        pending.extend(cls.__subclasses__())


def tree_map(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """``fn`` of every leaf (and of the leaves at the same place in ``others``), in a tree of the same structure."""
    if not isinstance(tree, NamedArrayTuple):
        for other in others:
            if (other is None) != (tree is None) or isinstance(other, NamedArrayTuple):
                raise TypeError(f"structures differ: {_describe(tree)} beside {_describe(other)}")
        return None if tree is None else fn(tree, *others)
    for other in others:
        if not isinstance(other, NamedArrayTuple) or other._fields != tree._fields:
            raise TypeError(f"structures differ: {_describe(tree)} beside {_describe(other)}")
    return tuple.__new__(type(tree), [tree_map(fn, *parts) for parts in zip(tree, *others)])


def named_leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf; placeholders are left out."""
    if isinstance(tree, NamedArrayTuple):
        for name, value in tree.items():
            yield from named_leaves(value, f"{prefix}.{name}" if prefix else name)
    elif tree is not None:
        yield prefix, tree


def leaves(tree: Tree) -> list[Any]:
    """The values of all leaves, in the order of the fields; placeholders are left out."""
    if not isinstance(tree, NamedArrayTuple):
        return [] if tree is None else [tree]
    return [leaf for part in tree for leaf in leaves(part)]


def _describe(tree: Tree) -> str:
    return f"{type(tree).__name__}{tree._fields}" if isinstance(tree, NamedArrayTuple) else type(tree).__name__
