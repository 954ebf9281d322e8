/* The row of a binary file with a position (_binary_reading.py), with `read()` and `read_at()`: what they return is
 * awaited, and asks the page cache then; all else is a coroutine of the file's, to which it hands over (`inner`).
 *
 * As with a coroutine, nothing happens before it is awaited: a read that is cancelled before has moved no position. */
#include "objects.h"

static PyMemberDef open_members[] = {
    FIELD("_raw", OPEN_RAW), FIELD("_order", OPEN_ORDER), FIELD("_ahead", OPEN_AHEAD),
    FIELD("_position", OPEN_POSITION), FIELD("_writable", OPEN_WRITABLE), FIELD("_thread", OPEN_THREAD),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(open, OPEN_FIELDS, OPEN_FIELDS)

/* `offset` is NULL for a read at the position. */
enum { READING_FILE, READING_SIZE, READING_OFFSET, READING_INNER, READING_FIELDS, READING_RUNS = READING_FIELDS,
       READING_PLACES };

VISIT_ROW(reading, READING_FIELDS)
DROP_ROW(reading, READING_FIELDS)

static int reading_clear(PyObject *self)
{
    for (int i = 0; i < READING_FIELDS; i++)
        Py_CLEAR(AT(self, i));
    return 0;
}

static PyObject *new_reading(PyObject *file, PyObject *size, PyObject *offset)
{
    PyObject *self = PyType_GenericAlloc(reading_type, 0);
    if (self) {
        set(self, READING_FILE, file);
        set(self, READING_SIZE, size);
        if (offset)
            set(self, READING_OFFSET, offset);
    }
    return self;
}

/* What is large comes straight from the page cache, past the blocks. */
static PyObject *read_whole(PyObject *file, PyObject *size)
{
    PyObject *raw = AT(file, OPEN_RAW);
    bool may = PyLong_AsSsize_t(size) >= AU_WHOLE && AT(file, OPEN_WRITABLE) == Py_False &&
               PyObject_TypeCheck(raw, file_type);
    return may ? read_now(raw, size, AT(file, OPEN_POSITION)) : NULL;
}

/* What is small is a part of the block that was read ahead.  The ring is not asked here, which knows whose
 * thread this is. */
static PyObject *read_part(PyObject *file, PyObject *size)
{
    if (PyLong_AsUnsignedLong(AT(file, OPEN_THREAD)) != PyThread_get_thread_ident() || PyErr_Occurred())
        return NULL;
    PyObject *base = PyObject_GetAttr(AT(file, OPEN_AHEAD), name_base), *data = NULL;
    PyObject *chunk = base ? PyObject_GetAttr(AT(file, OPEN_AHEAD), name_chunk) : NULL;
    if (chunk && PyBytes_Check(chunk)) {
        int64_t start = PyLong_AsLongLong(AT(file, OPEN_POSITION)) - PyLong_AsLongLong(base);
        Py_ssize_t count = PyLong_AsSsize_t(size);
        if (!PyErr_Occurred() && count > 0 && start >= 0 && start <= PyBytes_Size(chunk) - count)
            data = PyBytes_FromStringAndSize(PyBytes_AsString(chunk) + start, count);
    }
    Py_XDECREF(chunk);
    Py_XDECREF(base);
    return data;
}

/* What is here, or in the page cache, where it is this read's turn. */
static PyObject *read_here(PyObject *file, PyObject *size)
{
    PyObject *users = PyObject_GetAttr(AT(file, OPEN_ORDER), name_users);
    PyObject *empty = users ? PyObject_GetAttr(AT(file, OPEN_AHEAD), name_empty) : NULL;
    PyObject *data = NULL;
    if (empty && PyObject_IsTrue(users) == 0)
        data = empty == Py_True ? read_whole(file, size) : read_part(file, size);
    Py_XDECREF(users);
    Py_XDECREF(empty);
    return data;
}

/* What needs no wait, and then the position has moved; NULL, without an exception or with one, where it is not all. */
static PyObject *quick_read(PyObject *file, PyObject *size, PyObject *offset)
{
    PyObject *raw = AT(file, OPEN_RAW);
    if (offset)
        return AT(file, OPEN_WRITABLE) == Py_False && PyObject_TypeCheck(raw, file_type) ? read_now(raw, size, offset)
                                                                                        : NULL;
    PyObject *data = PyLong_CheckExact(size) ? read_here(file, size) : NULL;
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Clear(); /* a number that is too large is for the file to refuse */
    PyObject *position = data ? PyNumber_Add(AT(file, OPEN_POSITION), size) : NULL;
    if (position)
        put(file, OPEN_POSITION, position);
    else
        Py_CLEAR(data);
    return data;
}

static PySendResult reading_step(PyObject *self, PyObject *value, PyObject **result)
{
    if (AT(self, READING_INNER))
        return PyIter_Send(AT(self, READING_INNER), value, result);
    PyObject *file = AT(self, READING_FILE), *size = AT(self, READING_SIZE), *offset = AT(self, READING_OFFSET);
    if (!file) {
        PyErr_SetString(PyExc_RuntimeError, "this has been awaited already");
        return PYGEN_ERROR;
    }
    *result = quick_read(file, size, offset);
    if (*result)
        return PYGEN_RETURN;
    if (PyErr_Occurred())
        return PYGEN_ERROR;
    PyObject *inner = PyObject_CallMethodObjArgs(file, offset ? name__read_at : name__read, size, offset, NULL);
    if (!inner)
        return PYGEN_ERROR;
    AT(self, READING_INNER) = inner;
    return PyIter_Send(inner, Py_None, result);
}

/* As of coroutines, only one step is taken at a time: what it works with stays. */
static bool enter_step(PyObject *self)
{
    if (POINTER(self, READING_RUNS)) {
        PyErr_SetString(PyExc_ValueError, "this is being awaited already");
        return false;
    }
    POINTER(self, READING_RUNS) = self;
    return true;
}

static void leave_step(PyObject *self, bool over)
{
    POINTER(self, READING_RUNS) = NULL;
    if (over)
        reading_clear(self);
}

static PySendResult reading_send(PyObject *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (!enter_step(self))
        return PYGEN_ERROR;
    PySendResult said = reading_step(self, value, result);
    leave_step(self, said != PYGEN_NEXT);
    return said;
}

static PyObject *call_inner(PyObject *self, const char *name, PyObject *args)
{
    PyObject *method = PyObject_GetAttrString(AT(self, READING_INNER), name);
    PyObject *said = method ? PyObject_CallObject(method, args) : NULL;
    Py_XDECREF(method);
    return said;
}

static PyObject *reading_throw(PyObject *self, PyObject *args)
{
    if (!enter_step(self))
        return NULL;
    PyObject *said = AT(self, READING_INNER) ? call_inner(self, "throw", args) : raise_thrown(args);
    leave_step(self, !said);
    return said;
}

static PyObject *reading_close(PyObject *self, PyObject *Py_UNUSED(none))
{
    if (!enter_step(self))
        return NULL;
    PyObject *said = AT(self, READING_INNER) ? call_inner(self, "close", NULL) : none();
    leave_step(self, true);
    return said;
}

static PyMethodDef reading_methods[] = {
    {"send", send_once, METH_O, NULL},
    {"throw", reading_throw, METH_VARARGS, NULL},
    {"close", reading_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reading_slots[] = {
    {Py_tp_traverse, reading_traverse},
    {Py_tp_clear, reading_clear},
    {Py_tp_dealloc, reading_dealloc},
    {Py_am_await, itself},
    {Py_am_send, reading_send},
    {Py_tp_iter, itself},
    {Py_tp_iternext, step_once},
    {Py_tp_methods, reading_methods},
    {0, NULL},
};

static PyType_Spec reading_spec = {"aiouring._rows.Reading", ROW_SIZE(READING_PLACES), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   reading_slots};

/* Find at most `most` arguments, by position and then by name, as Python would; false with an exception. */
static bool named(PyObject *const *given, Py_ssize_t count, PyObject *keywords, const char *const *names, int most,
                  PyObject **found)
{
    Py_ssize_t by_name = keywords ? PyTuple_Size(keywords) : 0;
    bool fits = count + by_name <= most;
    for (Py_ssize_t at = 0; fits && at < count; at++)
        found[at] = given[at];
    for (Py_ssize_t at = 0; fits && at < by_name; at++) {
        int place = 0;
        while (place < most && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(keywords, at), names[place]))
            place++;
        fits = place >= count && place < most;
        if (fits)
            found[place] = given[count + at];
    }
    if (!fits)
        PyErr_Format(PyExc_TypeError, "%d arguments at most are taken, each once and by the names that it has", most);
    return fits;
}

static const char *const reading_names[] = {"size", "offset"};

static PyObject *open_read(PyObject *self, PyObject *const *given, Py_ssize_t count, PyObject *keywords)
{
    static PyObject *everything;
    PyObject *found[1] = {NULL};
    if (!named(given, count, keywords, reading_names, 1, found) || (!everything && !(everything = PyLong_FromLong(-1))))
        return NULL;
    return new_reading(self, found[0] ? found[0] : everything, NULL);
}

static PyObject *open_read_at(PyObject *self, PyObject *const *given, Py_ssize_t count, PyObject *keywords)
{
    PyObject *found[2] = {NULL, NULL};
    if (!named(given, count, keywords, reading_names, 2, found))
        return NULL;
    if (!found[0] || !found[1]) {
        PyErr_SetString(PyExc_TypeError, "read_at() wants a size and an offset");
        return NULL;
    }
    return new_reading(self, found[0], found[1]);
}

static PyMethodDef open_methods[] = {
    {"read", (PyCFunction)(void (*)(void))open_read, METH_FASTCALL | METH_KEYWORDS,
     "read($self, size=-1)\n--\n\n"
     "Read `size` bytes, fewer only at the end of the file; everything up to there if it is negative or None.\n\n"
     "Unbuffered (`buffering=0`), from what is no regular file: as many as one request brings."},
    {"read_at", (PyCFunction)(void (*)(void))open_read_at, METH_FASTCALL | METH_KEYWORDS,
     "read_at($self, size, offset)\n--\n\n"
     "Read `size` bytes at `offset`; fewer only at the end of the file.\n\n"
     "The position is neither used nor moved, and several tasks may do this at once.\n\n"
     "Raises:\n"
     "    ValueError: a negative size or offset.\n"
     "    io.UnsupportedOperation: the file cannot seek, or not be read."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot open_slots[] = {
    ROW_SLOTS(open),
    {Py_tp_methods, open_methods},
    {0, NULL},
};

static PyType_Spec open_spec = {"aiouring._rows.OpenRow", ROW_SIZE(OPEN_FIELDS), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, open_slots};
