# What `cmake --install` lays down: library, headers, find_package(prtool) and pkg-config.
# $ORIGIN lets a copy of the engines' libraries lie beside this one; the folders it was linked against come behind. CMake leaves
# out those inside the source tree, where setup.sh puts ONNX Runtime.
get_filename_component(onnxruntime_folder "${OnnxRuntime_LIBRARY}" DIRECTORY)
set_target_properties(prtool PROPERTIES INSTALL_RPATH "$ORIGIN;${onnxruntime_folder}" INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS prtool EXPORT prtoolTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(PRTOOL_PROGRAMS)
  set_target_properties(prtool-run PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
  install(TARGETS prtool-run RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/prtool)
install(EXPORT prtoolTargets NAMESPACE prtool:: DESTINATION ${package})
configure_package_config_file(cmake/prtoolConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/prtoolConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/prtoolConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/prtoolConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/prtoolConfigVersion.cmake cmake/FindOnnxRuntime.cmake cmake/FindSPNG.cmake DESTINATION ${package})
configure_file(cmake/prtool.pc.in ${CMAKE_CURRENT_BINARY_DIR}/prtool.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/prtool.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
