/* The row of an open file (_raw_file.py), with the reads that its page cache answers; and bytes for the kernel to fill.
 *
 * What a new bytes object holds is whatever was in that memory before, so the rule is: it is handed out only after all
 * of it has been written, or else what was written is copied from it, and it is dropped. */
#include "objects.h"

static PyMemberDef file_members[] = {
    FIELD("_driver", FILE_DRIVER), FIELD("fd", FILE_FD), FIELD("cached", FILE_CACHED),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(file, FILE_FIELDS, FILE_FIELDS)

/* Bytes that are copied in less time than other threads would notice: it never sleeps. */
enum { WITH_GIL = 64 * 1024 };

/* Whether the ring takes requests, and its loop is the one that runs. */
static bool in_use(PyObject *driver)
{
    if (!PyObject_TypeCheck(driver, turns_type) || !is_true(driver, TURNS_USABLE))
        return false;
    PyObject *running = PyObject_CallNoArgs(AT(driver, TURNS_IS_RUNNING));
    Py_XDECREF(running);
    return running == Py_True;
}

/* `size` bytes at `offset`, if that is all there; else the kernel's error or what there is, and no bytes. */
static int64_t read_all(PyObject *self, Py_ssize_t size, int64_t offset, PyObject **data)
{
    au_ring *ring = ring_of(AT(self, FILE_DRIVER));
    long fd = PyLong_AsLong(AT(self, FILE_FD));
    if (fd < 0 || ring->given_away >= AU_CACHED_MAX || !(*data = PyBytes_FromStringAndSize(NULL, size)))
        return 0;
    char *memory = PyBytes_AsString(*data);
    PyThreadState *state = size > WITH_GIL ? PyEval_SaveThread() : NULL;
    int64_t count = au_read_cached(ring, (int)fd, memory, size, 0, size, offset, 0);
    if (state)
        PyEval_RestoreThread(state);
    if (count != size)
        Py_CLEAR(*data);
    return count;
}

/* `size` bytes from `offset` on; NULL, without an exception or with one, where that is not to be had at once. */
static PyObject *read_now(PyObject *self, PyObject *wanted, PyObject *where)
{
    Py_ssize_t size = PyNumber_AsSsize_t(wanted, PyExc_OverflowError); /* int, or what stands for one */
    int64_t offset = size == -1 && PyErr_Occurred() ? -1 : PyLong_AsLongLong(where);
    PyObject *data = NULL;
    if (!PyErr_Occurred() && is_true(self, FILE_CACHED) && size > 0 && size <= AU_AT_ONCE && offset >= 0 &&
        in_use(AT(self, FILE_DRIVER)) && read_all(self, size, offset, &data) == -EOPNOTSUPP)
        set(self, FILE_CACHED, Py_False);
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Clear(); /* a number that is too large is for the request to refuse */
    return data;
}

static PyObject *file_read_at_once(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (given != 2) {
        PyErr_SetString(PyExc_TypeError, "read_at_once(size, offset)");
        return NULL;
    }
    PyObject *data = read_now(self, arguments[0], arguments[1]);
    return data || PyErr_Occurred() ? data : PyBytes_FromStringAndSize(NULL, 0);
}

static PyMethodDef file_methods[] = {
    {"read_at_once", (PyCFunction)(void (*)(void))file_read_at_once, METH_FASTCALL,
     "`size` bytes from `offset` on if the page cache has all of them and they are not too many; else none."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot file_slots[] = {
    ROW_SLOTS(file),
    {Py_tp_methods, file_methods},
    {0, NULL},
};

static PyType_Spec file_spec = {"aiouring._rows.FileRow", ROW_SIZE(FILE_FIELDS), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, file_slots};

static PyObject *new_bytes(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_ssize_t size = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (size < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "negative count");
        return NULL;
    }
    return PyBytes_FromStringAndSize(NULL, size);
}

static PyMethodDef file_functions[] = {
    {"new_bytes", new_bytes, METH_O, "A bytes object of `size` bytes, to be filled before anybody sees it."},
    {NULL, NULL, 0, NULL},
};
