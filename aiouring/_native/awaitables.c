/* What is awaited on every message's way, in place of coroutines: `Next`, which `Receiving.__anext__()` returns, and
 * `Done`, for what is over already.  They have the methods of coroutines, so asyncio makes tasks of them as well. */
#include "objects.h"

/* `waits` is the iterator of the future that it waits for; `receiving` is NULL when it is over. */
enum { NEXT_RECEIVING, NEXT_WAITS, NEXT_FIELDS };

VISIT_ROW(next, NEXT_FIELDS)

static PyObject *receive_next(PyObject *self)
{
    PyObject *next = PyType_GenericAlloc(next_type, 0);
    if (next)
        set(next, NEXT_RECEIVING, self);
    return next;
}

/* Nobody waits any more. */
static void stop_waiting(PyObject *next, PyObject *receiving)
{
    if (AT(next, NEXT_WAITS)) {
        POINTER(receiving, RECEIVE_TOLD) = NULL; /* whoever is told next may lie where that future lay */
        set(receiving, RECEIVE_READY, Py_None);
        Py_CLEAR(AT(next, NEXT_WAITS));
    }
}

/* It is over. */
static int next_clear(PyObject *next)
{
    PyObject *receiving = AT(next, NEXT_RECEIVING);
    if (receiving) {
        AT(next, NEXT_RECEIVING) = NULL;
        stop_waiting(next, receiving);
        Py_DECREF(receiving);
    }
    return 0;
}

static void next_dealloc(PyObject *next)
{
    PyObject_GC_UnTrack(next);
    next_clear(next);
    drop_row(next, NEXT_FIELDS);
}

/* Wait for a future of the receive's: PYGEN_NEXT with it, for the task; else something was raised. */
static PySendResult begin_to_wait(PyObject *next, PyObject *receiving, PyObject **result)
{
    if (!is_none(receiving, RECEIVE_READY) || !is_none(receiving, RECEIVE_TAKER)) {
        tell(receiving, name__busy, NULL, NULL); /* raises */
        return PYGEN_ERROR;
    }
    PyObject *ready = PyObject_CallNoArgs(AT(receiving, RECEIVE_NEW_FUTURE));
    PyObject *waits = ready ? PyObject_GetIter(ready) : NULL;
    if (!waits) {
        Py_XDECREF(ready);
        return PYGEN_ERROR;
    }
    put(receiving, RECEIVE_READY, ready);
    AT(next, NEXT_WAITS) = waits;
    return PyIter_Send(waits, Py_None, result);
}

/* Wait until something is queued.  PYGEN_NEXT while it waits; PYGEN_RETURN, without a result, when there is some. */
static PySendResult wait_for_chunk(PyObject *next, PyObject *receiving, PyObject *value, PyObject **result)
{
    if (AT(next, NEXT_WAITS)) {
        PyObject *waits = AT(next, NEXT_WAITS);
        Py_INCREF(waits); /* a future that is written in Python may close this */
        PySendResult said = PyIter_Send(waits, value, result);
        Py_DECREF(waits);
        if (said != PYGEN_RETURN)
            return said;
        stop_waiting(next, receiving);
        Py_CLEAR(*result);
    }
    while (PyList_Size(AT(receiving, RECEIVE_ARRIVALS)) == 0) {
        /* The last try to arm it may have found no buffer. */
        if (!is_true(receiving, RECEIVE_ARMED) && tell(receiving, name__arm, NULL, NULL) < 0)
            return PYGEN_ERROR;
        if (is_true(receiving, RECEIVE_OVER)) {
            tell(receiving, name__raise, NULL, NULL); /* raises */
            return PYGEN_ERROR;
        }
        PySendResult said = begin_to_wait(next, receiving, result);
        if (said != PYGEN_RETURN)
            return said;
        stop_waiting(next, receiving);
        Py_CLEAR(*result);
    }
    return PYGEN_RETURN;
}

static PyObject *take_early(PyObject *receiving)
{
    return PyObject_CallMethodObjArgs(AT(receiving, RECEIVE_EARLY), name_popleft, NULL);
}

static PySendResult next_send(PyObject *next, PyObject *value, PyObject **result)
{
    PyObject *receiving = AT(next, NEXT_RECEIVING);
    *result = NULL;
    if (!receiving) {
        PyErr_SetString(PyExc_RuntimeError, "this has been awaited already");
        return PYGEN_ERROR;
    }
    Py_INCREF(receiving);
    PySendResult said = PYGEN_RETURN;
    int early = AT(next, NEXT_WAITS) ? 0 : PyObject_IsTrue(AT(receiving, RECEIVE_EARLY));
    if (early == 0)
        said = wait_for_chunk(next, receiving, value, result);
    if (said == PYGEN_RETURN) {
        *result = early < 0 ? NULL : early ? take_early(receiving) : take_first(receiving);
        said = *result ? PYGEN_RETURN : PYGEN_ERROR;
    }
    if (said != PYGEN_NEXT)
        next_clear(next);
    Py_DECREF(receiving);
    return said;
}

/* As a generator says that it is over. */
static PyObject *as_iterator(PySendResult said, PyObject *result)
{
    if (said == PYGEN_RETURN) {
        PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
        if (stop)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
        Py_CLEAR(result);
    }
    return result;
}

/* `send()` and the step of an iterator, of all that are awaited here: what am_send says, as a generator says it. */
static PyObject *send_once(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult said = PyIter_Send(self, value, &result);
    return as_iterator(said, result);
}

static PyObject *step_once(PyObject *self) { return send_once(self, Py_None); }

/* Raise what was thrown in, as generator.throw() takes it: an exception, or its class, value and traceback. */
static PyObject *raise_thrown(PyObject *args)
{
    PyObject *type, *value = NULL, *trace = NULL;
    if (!PyArg_ParseTuple(args, "O|OO:throw", &type, &value, &trace))
        return NULL;
    if (PyExceptionInstance_Check(type)) {
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    } else if (PyExceptionClass_Check(type)) {
        if (value == Py_None)
            value = NULL;
        if (trace == Py_None)
            trace = NULL;
        Py_INCREF(type);
        Py_XINCREF(value);
        Py_XINCREF(trace);
        PyErr_Restore(type, value, trace);
    } else {
        PyErr_Format(PyExc_TypeError, "exceptions are thrown, not %R", type);
    }
    return NULL;
}

static PyObject *next_throw(PyObject *next, PyObject *args)
{
    next_clear(next);
    return raise_thrown(args);
}

static PyObject *next_close(PyObject *next, PyObject *Py_UNUSED(none))
{
    next_clear(next);
    return none();
}

static PyObject *itself(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyMethodDef next_methods[] = {
    {"send", send_once, METH_O, NULL},
    {"throw", next_throw, METH_VARARGS, NULL},
    {"close", next_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot next_slots[] = {
    {Py_tp_traverse, next_traverse},
    {Py_tp_clear, next_clear},
    {Py_tp_dealloc, next_dealloc},
    {Py_am_await, itself},
    {Py_am_send, next_send},
    {Py_tp_iter, itself},
    {Py_tp_iternext, step_once},
    {Py_tp_methods, next_methods},
    {0, NULL},
};

static PyType_Spec next_spec = {"aiouring._rows.Next", ROW_SIZE(NEXT_FIELDS), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                next_slots};

/* ---- what is over before it is awaited ----------------------------------------------------- */

static PySendResult done_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = none();
    return PYGEN_RETURN;
}

static PyObject *done_throw(PyObject *Py_UNUSED(self), PyObject *args) { return raise_thrown(args); }
static PyObject *done_close(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none)) { return none(); }

static PyMethodDef done_methods[] = {
    {"send", send_once, METH_O, NULL},
    {"throw", done_throw, METH_VARARGS, NULL},
    {"close", done_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot done_slots[] = {
    {Py_am_await, itself},
    {Py_am_send, done_send},
    {Py_tp_iter, itself},
    {Py_tp_iternext, step_once},
    {Py_tp_methods, done_methods},
    {0, NULL},
};

static PyType_Spec done_spec = {"aiouring._rows.Done", sizeof(PyObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, done_slots};
