"""The page nbs/api.qmd: every public name of the package with signature and docstring, and the
chapter that builds it.

`python nbs/book.py sync` writes it and `check` compares it. It is made from the source alone:
nothing is imported, so that it is the same on every machine.
"""
import ast
import io
import re
import tokenize

INTRO = """# API {{#sec-api .unnumbered}}

Every public name of `{package}`, made from the signatures and docstrings of the code by \
`make sync`. Tensors are `(b, c, h, w)`, RGB in [-1, 1]; pictures are `uint8`, \
height × width × 3, RGB.

## The package {{.unnumbered}}

Most programs need no more than these: `from {package} import {names}`.

"""


def api_page(root, package):
    """The text of the page, from the files of the package and the notebooks that export them.

    Raises ValueError where a public name is not there.
    """
    chapters = dict(built_in(root))
    files = [p for p in (root / package).glob("*.py") if not p.stem.startswith("_")]
    modules = {p.stem: Module(p) for p in files}
    order = sorted((m for m in modules if m in chapters), key=lambda m: chapters[m][0])
    surface = list(public_surface(root / package / "__init__.py"))
    parts = [INTRO.format(package=package, names=", ".join(name for name, _, _ in surface[:4]))]
    for name, module, there in surface:
        if there not in modules[module].public:
            raise ValueError(f"{package}.{name}: {module} has no public name {there}")
        summary = paragraph(modules[module].doc(there).split("\n\n")[0])
        parts.append(f"- [`{name}`](#api-{module}-{there}): {summary}\n")
    for m in order:
        quote, label = markdown(modules[m].quote), chapters[m][1]
        parts.append(f"\n## {m} {{#api-{m} .unnumbered}}\n\n")
        parts.append(f"*{quote}* `{package}.{m}` is built in @{label}.\n")
        parts += [modules[m].entry(name) for name in modules[m].public]
    return "".join(parts)


def built_in(root):
    "(module, (file name, label)) of each notebook that exports one."
    for path in sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb")):
        text = path.read_text(encoding="utf-8")
        module = re.search(r"#\|\s*default_exp (\w+)", text)
        label = re.search(r"\{#(sec-[\w-]+)", text)
        if module and label:
            yield module[1], (path.name, label[1])


def public_surface(init):
    "(name, module, name there) of what `_HOME` in the package's __init__.py lists."
    for s in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(s, ast.Assign) and getattr(s.targets[0], "id", "") == "_HOME":
            for name, home in ast.literal_eval(s.value).items():
                module, _, other = home.partition(".")
                yield name, module, other or name


def markdown(text):
    """Plain text as markdown: what would be markup is escaped, but for code in backticks and
    references such as @eq-sum."""
    def escaped(piece):
        return re.sub(r"([\\*_$^~<>\[\]|#{}]|-(?=-))", r"\\\1", piece)

    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else escaped(p) for p in pieces)


class Module:
    "One file of the package: its docstring, its public names, and an entry for each."

    def __init__(self, path):
        self.name, text = path.stem, path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.quote, self.public, self.defined = ast.get_docstring(tree) or "", [], {}
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        notes = [t for t in tokens if t.type == tokenize.COMMENT and t.string[:4] != "# %%"]
        self.comments = {t.start[0]: t.string.lstrip("# ") for t in notes}
        # lines that are comments
        self.alone = {i for i, line in enumerate(text.splitlines(), 1) if line.startswith("#")}
        for s in methods_in_classes(tree.body):
            if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
                self.defined[s.name] = s
            for target in getattr(s, "targets", [getattr(s, "target", None)]):
                nodes = ast.walk(target) if target else ()
                self.defined |= {n.id: s for n in nodes if isinstance(n, ast.Name)}
        if "__all__" in self.defined:
            self.public = ast.literal_eval(self.defined.pop("__all__").value)

    def doc(self, name):
        "The docstring, or of a constant the comment beside it or above it."
        s = self.defined[name]
        if isinstance(s, (ast.Assign, ast.AnnAssign)):
            beside = self.comments.get(s.lineno) or self.comments.get(s.end_lineno)
            above = self.comments.get(s.lineno - 1, "") if s.lineno - 1 in self.alone else ""
            return beside or above
        return ast.get_docstring(s) or ""

    def entry(self, name):
        s = self.defined[name]
        if isinstance(s, (ast.Assign, ast.AnnAssign)):
            form = constant(name, s)
        else:
            form = name + (self.arguments(s) if isinstance(s, ast.ClassDef) else signature(s))
        lines = [paragraph(p) for p in self.doc(name).split("\n\n") if p.strip()] or ["–"]
        parts = list(self.parts(s)) if isinstance(s, ast.ClassDef) else []
        lines += ["\n".join(f"- `{form}`: {paragraph(text)}" for form, text in parts)] * bool(parts)
        body = "\n\n".join(lines).replace("\n", "\n    ").replace("\n    \n", "\n\n")
        return f"\n[`{form}`]{{#api-{self.name}-{name}}}\n:   {body}\n"

    def parts(self, cls):
        """(form, what is said of it) of the fields of a class, in a comment beside them or a string
        below, and of its methods with a docstring."""
        for s, after in zip(cls.body, [*cls.body[1:], None]):
            if isinstance(s, ast.AnnAssign) and not s.target.id.startswith("_"):
                string = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                below = string and after.value.value
                if text := self.comments.get(s.lineno) or below:
                    yield s.target.id, text
            elif isinstance(s, ast.FunctionDef) and not s.name.startswith("_"):
                if text := ast.get_docstring(s):
                    yield f".{s.name}{signature(s, method=True)}", text

    def arguments(self, cls):
        """What a class is called with: the arguments of __init__, the fields of a dataclass (its
        bases' first), or the bases of an exception or a protocol."""
        for s in cls.body:
            if isinstance(s, ast.FunctionDef) and s.name == "__init__":
                return signature(s, method=True)
        if fields := self.fields(cls):
            return f"({', '.join(fields.values())})"
        return f"({', '.join(map(ast.unparse, cls.bases))})" if cls.bases else "()"

    def fields(self, cls):
        """{name: 'name: type = default'} of what a dataclass is called with: the fields of its
        bases, then its own."""
        if not any("dataclass" in ast.unparse(d) for d in cls.decorator_list):
            return {}
        fields = {}
        for base in cls.bases:
            inherited = self.defined.get(getattr(base, "id", ""))
            fields |= self.fields(inherited) if isinstance(inherited, ast.ClassDef) else {}
        for s in cls.body:
            if isinstance(s, ast.AnnAssign) and "init=False" in ast.unparse(s.value or s.target):
                fields.pop(s.target.id, None)
            elif isinstance(s, ast.AnnAssign):
                value = f" = {default(s.value)}" if s.value else ""
                fields[s.target.id] = f"{s.target.id}: {annotation(s.annotation)}{value}"
        return fields


def methods_in_classes(body):
    "The statements of a module; each function that fastcore's @patch puts into a class is there."
    classes, rest = {s.name: s for s in body if isinstance(s, ast.ClassDef)}, []
    for s in body:
        kinds = [ast.unparse(d) for d in getattr(s, "decorator_list", [])]
        if any(re.match(r"patch\b", kind) for kind in kinds):
            owner, s.args.args[0].annotation = s.args.args[0].annotation.id, None
            kinds = ["property" if "as_prop" in kind else kind for kind in kinds]
            s.decorator_list = [ast.Name(kind) for kind in kinds]
            classes[owner].body.append(s)
        else:
            rest.append(s)
    return rest


def paragraph(text):
    text = " ".join(text.split())
    command = re.match("((?:Example|Several GPUs): )(.*)", text)
    return f"{command[1]}`{command[2]}`" if command and "`" not in text else markdown(text)


def signature(f, method=False):
    """The arguments of a function as its source has them; of a method without the first, which is
    the object itself."""
    args = f.args
    for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]:
        a.annotation = a.annotation and ast.Name(annotation(a.annotation))
    text, kinds = ast.unparse(args), [getattr(d, "id", "") for d in f.decorator_list]
    if method and "staticmethod" not in kinds:
        text = text.partition(", ")[2]
    brackets = "" if "property" in kinds else f"({text})"
    return brackets + (f" -> {annotation(f.returns)}" if f.returns else "")


def annotation(node):
    "A type as text: without the quotes, and of Annotated[type, …] the type."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Annotated"):
        return annotation(node.slice.elts[0])
    return ast.unparse(node)


def default(node):
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "field":
        given = {k.arg: k.value for k in node.keywords}
        if not (factory := given.get("default_factory")):
            return ast.unparse(given["default"])
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return f"{ast.unparse(factory)}()"
    return ast.unparse(node)


def constant(name, s):
    "`NAME = value`, or NAME alone where the value is long."
    target, value = (s.targets[0] if isinstance(s, ast.Assign) else s.target), s.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        value = value.elts[[n.id for n in target.elts].index(name)]
    text = ast.unparse(value) if value else ""
    return f"{name} = {text}" if len(text) <= 60 and "`" not in text else name
