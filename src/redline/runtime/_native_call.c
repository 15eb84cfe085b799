/* The lightest way from Python into a compiled model: no ctypes, no checks but the buffers' own.
 *
 * Caller(run, make, inputs, outputs, empty, release) is called with a sequence of arrays.
 * Arrays that fit exactly (type, shape, contiguous) run and give a list of results; anything else
 * gives None, and the caller goes the patient way, which converts or says what is wrong. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <structmember.h>

enum { MOST_DIMS = 16, MOST_ARRAYS = 64, MOST_IDLE = 64 };

typedef int (*Run)(void *context, const void *const *inputs, void *const *outputs);

typedef struct {
    char format;
    int ndim;
    Py_ssize_t shape[MOST_DIMS];
} Spec;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Run run;
    PyObject *make;   /* () -> address of a new context */
    PyObject *empty;  /* numpy.empty */
    PyObject *outputs; /* tuple of (shape, dtype) */
    int inputs_count, outputs_count, idle_count, release;
    void *idle[MOST_IDLE];
    Spec inputs[MOST_ARRAYS];
} Caller;

static void *take_context(Caller *self) {
    if (self->idle_count) return self->idle[--self->idle_count];
    PyObject *made = PyObject_CallNoArgs(self->make);
    if (!made) return NULL;
    void *context = PyLong_AsVoidPtr(made);
    Py_DECREF(made);
    return context;
}

/* 1: it fits; 0: it does not, and there is nothing to release. */
static int fits(PyObject *array, const Spec *spec, Py_buffer *view) {
    if (PyObject_GetBuffer(array, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)) {
        PyErr_Clear();
        return 0;
    }
    int same = view->ndim == spec->ndim && view->format && view->format[0] == spec->format &&
               !view->format[1] && (uintptr_t)view->buf % (size_t)view->itemsize == 0;
    for (int i = 0; same && i < spec->ndim; ++i) same = view->shape[i] == spec->shape[i];
    if (!same) PyBuffer_Release(view);
    return same;
}

/* New arrays for the results, and their addresses. */
static PyObject *make_results(Caller *self, void **targets) {
    PyObject *results = PyList_New(self->outputs_count);
    for (int i = 0; results && i < self->outputs_count; ++i) {
        PyObject *spec = PyTuple_GET_ITEM(self->outputs, i);
        PyObject *arguments[2] = {PyTuple_GET_ITEM(spec, 0), PyTuple_GET_ITEM(spec, 1)};
        PyObject *array = PyObject_Vectorcall(self->empty, arguments, 2, NULL);
        Py_buffer view;
        if (!array || PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)) {
            Py_XDECREF(array);
            Py_CLEAR(results);
            break;
        }
        targets[i] = view.buf; /* the list keeps the array */
        PyBuffer_Release(&view);
        PyList_SET_ITEM(results, i, array);
    }
    return results;
}

static PyObject *run_views(Caller *self, Py_buffer *views) {
    const void *sources[MOST_ARRAYS];
    void *targets[MOST_ARRAYS];
    for (int i = 0; i < self->inputs_count; ++i) sources[i] = views[i].buf;
    PyObject *results = make_results(self, targets);
    void *context = results ? take_context(self) : NULL;
    if (!context) {
        Py_XDECREF(results);
        return NULL;
    }
    int status;
    if (self->release) {
        Py_BEGIN_ALLOW_THREADS
        status = self->run(context, sources, targets);
        Py_END_ALLOW_THREADS
    } else {
        status = self->run(context, sources, targets);
    }
    if (self->idle_count < MOST_IDLE) self->idle[self->idle_count++] = context;
    if (status) {
        Py_DECREF(results);
        return PyErr_Format(PyExc_OSError, "the compiled model returned %d", status);
    }
    return results;
}

static PyObject *call(PyObject *object, PyObject *const *args, size_t count, PyObject *names) {
    Caller *self = (Caller *)object;
    if (PyVectorcall_NARGS(count) != 1 || names) {
        PyErr_SetString(PyExc_TypeError, "a Caller takes one sequence of arrays");
        return NULL;
    }
    PyObject *arrays = PySequence_Fast(args[0], "a Caller takes one sequence of arrays");
    if (!arrays) return NULL;
    Py_buffer views[MOST_ARRAYS];
    int held = 0;
    if (PySequence_Fast_GET_SIZE(arrays) == self->inputs_count)
        while (held < self->inputs_count &&
               fits(PySequence_Fast_GET_ITEM(arrays, held), &self->inputs[held], &views[held]))
            ++held;
    else
        held = -1;
    PyObject *results;
    if (held == self->inputs_count) {
        results = run_views(self, views);
    } else {
        results = Py_NewRef(Py_None);
    }
    while (held > 0) PyBuffer_Release(&views[--held]);
    Py_DECREF(arrays);
    return results;
}

static int read_spec(PyObject *told, Spec *spec) {
    const char *format;
    PyObject *shape;
    if (!PyArg_ParseTuple(told, "sO!", &format, &PyTuple_Type, &shape)) return -1;
    if (!format[0] || format[1] || PyTuple_GET_SIZE(shape) > MOST_DIMS) {
        PyErr_SetString(PyExc_ValueError, "an array that the fast call does not know");
        return -1;
    }
    spec->format = format[0];
    spec->ndim = (int)PyTuple_GET_SIZE(shape);
    for (int i = 0; i < spec->ndim; ++i) {
        spec->shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static PyObject *caller_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *run, *make, *inputs, *outputs, *empty;
    int release;
    if (!PyArg_ParseTuple(args, "OOO!O!Op", &run, &make, &PyTuple_Type, &inputs, &PyTuple_Type,
                          &outputs, &empty, &release))
        return NULL;
    if (PyTuple_GET_SIZE(inputs) > MOST_ARRAYS || PyTuple_GET_SIZE(outputs) > MOST_ARRAYS) {
        PyErr_SetString(PyExc_ValueError, "more arrays than the fast call knows");
        return NULL;
    }
    Caller *self = (Caller *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->call = call;
    self->run = (Run)PyLong_AsVoidPtr(run);
    self->make = Py_NewRef(make);
    self->empty = Py_NewRef(empty);
    self->outputs = Py_NewRef(outputs);
    self->inputs_count = (int)PyTuple_GET_SIZE(inputs);
    self->outputs_count = (int)PyTuple_GET_SIZE(outputs);
    self->release = release;
    for (int i = 0; i < self->inputs_count && !PyErr_Occurred(); ++i)
        read_spec(PyTuple_GET_ITEM(inputs, i), &self->inputs[i]);
    for (int i = 0; i < self->outputs_count && !PyErr_Occurred(); ++i)
        if (!PyTuple_Check(PyTuple_GET_ITEM(outputs, i)) ||
            PyTuple_GET_SIZE(PyTuple_GET_ITEM(outputs, i)) != 2)
            PyErr_SetString(PyExc_ValueError, "outputs are pairs of shape and dtype");
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Make the first context now, where what fails can be told. */
static PyObject *caller_warm(PyObject *object, PyObject *unused) {
    Caller *self = (Caller *)object;
    void *context = take_context(self);
    if (!context) return NULL;
    self->idle[self->idle_count++] = context;
    Py_RETURN_NONE;
}

/* Idle contexts, which the caller closes; those at work come back to nobody. */
static PyObject *caller_drain(PyObject *object, PyObject *unused) {
    Caller *self = (Caller *)object;
    PyObject *addresses = PyList_New(0);
    while (addresses && self->idle_count) {
        PyObject *address = PyLong_FromVoidPtr(self->idle[--self->idle_count]);
        if (!address || PyList_Append(addresses, address)) Py_CLEAR(addresses);
        Py_XDECREF(address);
    }
    return addresses;
}

static int caller_traverse(Caller *self, visitproc visit, void *arg) {
    Py_VISIT(self->make);
    Py_VISIT(self->empty);
    Py_VISIT(self->outputs);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int caller_clear(Caller *self) {
    Py_CLEAR(self->make);
    Py_CLEAR(self->empty);
    Py_CLEAR(self->outputs);
    return 0;
}

static void caller_dealloc(Caller *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    caller_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef caller_methods[] = {
    {"warm", caller_warm, METH_NOARGS, "Make the first context now, where what fails can be told."},
    {"drain", caller_drain, METH_NOARGS, "Take the addresses of the idle contexts out."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef caller_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Caller, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot caller_slots[] = {
    {Py_tp_doc, "Caller(run, make, inputs, outputs, empty, release)"},
    {Py_tp_new, caller_new},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, caller_traverse},
    {Py_tp_clear, caller_clear},
    {Py_tp_dealloc, caller_dealloc},
    {Py_tp_methods, caller_methods},
    {Py_tp_members, caller_members},
    {0, NULL},
};

static PyType_Spec caller_spec = {
    "redline.runtime._native_call.Caller",
    sizeof(Caller),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    caller_slots,
};

static int fill(PyObject *module) {
    PyObject *type = PyType_FromSpec(&caller_spec);
    int failed = !type || PyModule_AddObjectRef(module, "Caller", type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native_call", "See _native_call.c.", 0, NULL, module_slots,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native_call(void) { return PyModuleDef_Init(&module); }
